"""README and docs: recipes are valid, commands parse, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from peftcli.cli.app import build_app
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from tests.docs.pages import PAGES, ROOT, blocks, commands, text_of

DOCS = ["recipes", "models", "data", "methods", "devices", "performance", "security", "coming-from"]


def test_every_page_is_there() -> None:
    assert {f"docs/{name}.md" for name in DOCS} <= set(PAGES)


def test_the_index_names_every_page() -> None:
    index = text_of("docs/README.md")
    assert [page for page in PAGES if page.startswith("docs/") and f"]({page[5:]})" not in index] == ["docs/README.md"]


def test_every_promise_of_security_names_tests_that_are_there() -> None:
    promises = [
        line for line in text_of("docs/security.md").splitlines() if line.startswith("| ") and "checked by" not in line
    ]
    assert len(promises) >= 12
    for line in promises:
        named = re.findall(r"`([\w/]+\.py|pyproject\.toml)`", line.rstrip("| ").rpartition("|")[2])
        assert named, line
        assert [one for one in named if not (ROOT / "tests" / one).exists() and not (ROOT / one).exists()] == []


def test_every_recipe_on_a_page_is_valid(tmp_path: Path) -> None:
    seen = 0
    for page in PAGES:
        for number, body in enumerate(blocks(page, "yaml", "yml")):
            file = tmp_path / f"{page.replace('/', '-')}-{number}.yaml"
            file.write_text(body, encoding="utf-8")
            load_recipe(file, [], NAMES)
            seen += 1
    assert seen >= 5


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_ours_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"`((?:peftcli|tests|docs|configs|benchmarks)/[\w./-]+\.\w+)`", text_of(page))
    gone = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert gone == []


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_is_a_line_with_all_columns(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    for block in re.findall(r"(?:^\|.*\n)+.*", text, flags=re.M):
        *rows, after = block.split("\n")
        assert after == "" or after.startswith("<!--"), f"{page}: a row goes on on a line of its own: {after}"
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(columns) == 1, f"{page}: {rows[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_parses(page: str) -> None:
    group = typer.main.get_command(build_app())
    assert isinstance(group, typer.core.TyperGroup)
    for name, *arguments in commands(page):
        if name.startswith("-"):
            group.make_context("peft", [name], resilient_parsing=True)
            continue
        command = group.get_command(typer.Context(group), name)
        assert command is not None, f"{page}: there is no `peft {name}`"
        if arguments:  # a bare `peft validate` in a sentence names the command
            command.make_context(name, [argument.strip("[]") for argument in arguments])


def test_commands_are_found() -> None:
    assert ["eval", "runs/lora"] in commands("README.md")
    assert ["train", "recipe.yaml"] in commands("docs/devices.md")  # the one behind torchrun


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(str(target.resolve().relative_to(ROOT)))):
            wrong.append(link)
    assert wrong == []
