"""The generated parts of the pages equal what the code says now."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from peftcli.protocol.registry import registry
from tests.docs.pages import ROOT, text_of

PAGES = sorted(file.name for file in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_tasks(page: str) -> str:
    """Take the tasks out of the table of families: which classes there are depends on transformers' version."""
    return re.sub(r"^(\| `[\w-]+` \| (?:encoder|decoder)[^|]*\|)[^|]*\|", r"\1 |", page, flags=re.M)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(generator: ModuleType, name: str) -> None:
    page = text_of(f"docs/{name}")
    made = generator.filled(page)
    if name == "models.md":
        page, made = without_tasks(page), without_tasks(made)
    assert made == page, "run: python docs/generate.py"


def test_every_part_is_used_and_known(generator: ModuleType) -> None:
    used = [part for name in PAGES for part in generator.PART.findall(text_of(f"docs/{name}"))]
    opened = sum(len(re.findall("^<!-- generated:", text_of(f"docs/{name}"), flags=re.M)) for name in PAGES)
    assert len(used) == opened, "a part lacks its <!-- end -->"
    assert {name for name, _ in used} == set(generator.PARTS)
    assert {argument for name, argument in used if name == "fields"} == set(generator.BLOCKS)


def test_every_method_has_a_section() -> None:
    page = text_of("docs/methods.md")
    for name in registry.names():
        assert f"\n## {name}\n\n<!-- generated: method {name} -->\n" in page, name


def test_a_changed_page_is_noticed(generator: ModuleType) -> None:
    page = text_of("docs/recipes.md")
    assert generator.filled(page.replace("| `seed` |", "| `sead` |")) == page
