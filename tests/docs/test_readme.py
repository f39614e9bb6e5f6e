"""What README alone promises: how to set up, the recipes that are shipped, and the table of methods."""

from __future__ import annotations

import re

import pytest

from peftcli.analysis.counting import count_params
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe
from tests.docs.pages import ROOT, blocks, commands, text_of

SETUP = [
    'python -m pip install -e ".[demo]" && peft train configs/lora.yaml',
    'python -m pip install -e ".[test]" && pytest',
]


def test_readme_has_the_set_up_commands() -> None:
    body = "\n".join(blocks("README.md", "bash"))
    for command in SETUP:
        assert command in body
    assert body.count("pip install") == len(SETUP)
    assert len(commands("README.md")) >= 8


def test_ci_runs_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = SETUP[1].split(" && ")
    assert install.replace("install", "install --quiet") in script
    assert re.search(rf"^{test}( |$)", script, flags=re.M)


@pytest.mark.parametrize("folder", ["configs", "recipes"])
def test_shipped_recipes_are_valid(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.yaml"))
    assert len(files) >= {"configs": 1, "recipes": 5}[folder]
    for file in files:
        loaded = load_recipe(file, [], NAMES)
        assert loaded.recipe.output_dir == f"runs/{file.stem}", file.name


def test_method_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d.]+)% \| ([\d,]+) \|", text_of("docs/methods.md"), flags=re.M)
    assert [name for name, *_ in rows] == registry.names()
    for name, family, percent, saved in rows:
        counts = count_params(load_recipe(ROOT / "configs" / f"{name}.yaml", [], NAMES).recipe)
        info = registry.info(name)
        assert (family, percent, saved) == (info.family, f"{counts.percent:.2f}", f"{counts.saved:,}"), name


def test_what_sets_it_apart_has_a_proof_in_each_row() -> None:
    """A test, a benchmark or a page; tests/docs/test_pages.py follows the links."""
    section = text_of("README.md").partition("## What sets it apart\n")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        proof = row.rstrip("| ").rpartition(" | ")[2]
        assert re.search(r"\]\((tests|benchmarks|docs)/", proof), row


def test_readme_counts_the_methods() -> None:
    (number,) = re.findall(r"^\| (\d+) methods", text_of("README.md"), flags=re.M)
    assert int(number) == len(registry.names())


def test_the_comparison_of_methods_has_a_row_for_each() -> None:
    """Between the marks is the table of report.md (CONTRIBUTING.md says how it gets there), or nothing yet."""
    table = re.search(r"<!-- comparison -->\n(.*)<!-- end comparison -->", text_of("README.md"), flags=re.S)
    assert table is not None
    labels = {cell.replace("\\", "").strip(" `*") for cell in re.findall(r"^\| ([^|]+) \|", table[1], flags=re.M)}
    missing = {file.stem for file in (ROOT / "configs").glob("*.yaml")} - labels
    assert not table[1].strip() or missing == set()
