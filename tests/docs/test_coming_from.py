"""docs/coming-from.md: every key on our side exists, and the recipe's own answers agree with the table."""

from __future__ import annotations

import re

import pytest

from peftcli.protocol.registry import registry
from peftcli.recipe.aliases.all_aliases import ALIASES
from peftcli.recipe.field_descriptions import field_at
from peftcli.recipe.schema import Recipe
from tests.docs.pages import text_of


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = text_of("docs/coming-from.md").partition(f"## {heading}\n")[2]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table: list[list[str]] = []
    for line in section.splitlines()[section.splitlines().index(lines[0]) :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table[2:]


def keys(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def exists(key: str) -> bool:
    """Return whether a dotted key is one of a recipe, of any method."""
    block, _, name = key.partition(".")
    if block == "method" and name:
        models = [registry.params_model(method) for method in registry.names()]
        return any(name in model.model_fields for model in models if model is not None)
    return field_at(Recipe, tuple(key.split("."))) is not None


COMMON = rows("The common options")


def test_the_table_is_read() -> None:
    assert len(COMMON) >= 35
    assert all(len(row) == 8 for row in COMMON)
    assert exists("method.r") and exists("seed") and not exists("method.rank") and not exists("training.lr")


@pytest.mark.parametrize("row", COMMON, ids=[row[0].strip("`") for row in COMMON])
def test_our_key_exists_and_theirs_lead_to_it(row: list[str]) -> None:
    (ours,) = keys(row[0])
    assert exists(ours)
    foreign = [name for cell in row[1:] for name in keys(cell)]
    assert foreign
    for name in foreign:
        if name == ours.rpartition(".")[2]:
            continue  # the same word
        alias = ALIASES.get(name)
        assert alias is not None, f"{name}: the recipe does not know it"
        assert alias.ours == ours, f"{name}: the recipe answers {alias.ours}"


def test_what_is_not_here_has_no_key() -> None:
    found = [name for row in rows("What is not here, and why") for name in keys(row[0])]
    known = [name for name in found if name in ALIASES]
    assert len(known) >= 3
    assert [name for name in known if ALIASES[name].ours is not None and name != "device_map"] == []


def test_every_tool_has_its_table() -> None:
    page = text_of("docs/coming-from.md")
    tools = {tool.strip() for alias in ALIASES.values() for tool in alias.tools.replace(" v1", "").split(",")}
    for tool in ("axolotl", "LLaMA-Factory", "ms-swift", "torchtune", "litgpt", "unsloth", "trl", "HF peft"):
        assert tool in tools
        assert f"<!-- generated: foreign-keys {tool} -->" in page
