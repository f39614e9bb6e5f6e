"""README and CONTRIBUTING promise what exists: commands parse, recipes are valid, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from peftcli.analysis.counting import count_params
from peftcli.cli.app import build_app
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
SETUP = [
    'python -m pip install -e ".[demo]" && peft train configs/lora.yaml',
    'python -m pip install -e ".[test]" && pytest',
]


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, *languages: str) -> list[str]:
    """Return the contents of fenced code blocks of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(document), flags=re.M | re.S)
    return [body for language, body in found if language in languages]


def peft_commands(document: str) -> list[list[str]]:
    """Return the arguments of each complete `peft` command line in code blocks and inline code."""
    lines = [line for body in blocks(document, "bash", "console") for line in body.splitlines()]
    lines += re.findall(r"`(peft [^`]+)`", text_of(document))
    commands = []
    for line in lines:
        for part in line.removeprefix("$ ").split("&&"):
            if part.strip().startswith("peft "):
                commands.append(shlex.split(part.split(" > ")[0].replace("\\|", "|"), comments=True)[1:])
    return [command for command in commands if "..." not in command and "[key=value" not in command]


def test_readme_has_the_set_up_commands() -> None:
    body = "\n".join(blocks("README.md", "bash"))
    for command in SETUP:
        assert command in body
    assert body.count("pip install") == len(SETUP)


def test_ci_runs_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = SETUP[1].split(" && ")
    assert install.replace("install", "install --quiet") in script
    assert re.search(rf"^{test}( |$)", script, flags=re.M)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document: str) -> None:
    group = typer.main.get_command(build_app())
    commands = peft_commands(document)
    assert len(commands) >= 8 or document != "README.md"
    for name, *arguments in commands:
        if name.startswith("-"):
            group.make_context("peft", [name], resilient_parsing=True)
            continue
        assert name in group.commands, f"{document}: peft {name}"
        if arguments:  # a bare `peft validate` in a sentence names the command
            group.commands[name].make_context(name, [argument.strip("[]") for argument in arguments])


def test_recipes_in_readme_are_valid(tmp_path: Path) -> None:
    recipes = blocks("README.md", "yaml")
    assert recipes
    for number, body in enumerate(recipes):
        file = tmp_path / f"recipe-{number}.yaml"
        file.write_text(body, encoding="utf-8")
        load_recipe(file, [], NAMES)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    links = re.findall(r"\]\(([^)#]+?)\)", text_of(document))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("folder", ["configs", "recipes"])
def test_shipped_recipes_are_valid(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.yaml"))
    assert len(files) >= {"configs": 1, "recipes": 5}[folder]
    for file in files:
        loaded = load_recipe(file, [], NAMES)
        assert loaded.recipe.output_dir == f"runs/{file.stem}", file.name


def test_method_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d.]+)% \| ([\d,]+) \|", text_of("README.md"), flags=re.M)
    assert [name for name, *_ in rows] == registry.names()
    for name, family, percent, saved in rows:
        counts = count_params(load_recipe(ROOT / "configs" / f"{name}.yaml", [], NAMES).recipe)
        info = registry.info(name)
        assert (family, percent, saved) == (info.family, f"{counts.percent:.2f}", f"{counts.saved:,}"), name
