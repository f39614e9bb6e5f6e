"""A recipe's names are those of the records that the command line hands in; `recipe` has no list of its own."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from peftcli.errors import Problem
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.schema import DataSource, Recipe
from peftcli.recipe.vocabulary import spelled_out
from tests.recipe.conftest import GOOD, SMALL

PACKAGE = Path(__file__).resolve().parents[2] / "peftcli"
TRANSLATIONS = {"recipe/aliases/all_aliases.py", "starting/convert/convert_file.py"}
"""Files that say which task another tool's name means."""
NAMESAKES = {"data/formats/preference.py"}
"""A format that has the name of a task."""


def test_a_task_is_named_in_its_own_room_only() -> None:
    """Whoever needs to know something about a task asks its record."""
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in NAMES.tasks
    }
    assert {name for name in named if not name.startswith("tasks/")} == TRANSLATIONS | NAMESAKES


def test_a_task_that_is_handed_in_is_a_task(tmp_path: Path) -> None:
    tasks = {**NAMES.tasks, "ranking": replace(NAMES.tasks["sequence_classification"], name="ranking")}
    file = tmp_path / "r.yaml"
    file.write_text(GOOD.replace("causal_lm", "ranking"), encoding="utf-8")
    assert load_recipe(file, [], replace(SMALL, tasks=tasks)).recipe.task == "ranking"


@pytest.mark.parametrize(
    ("change", "key", "expected", "remedy"),
    [
        ("task=casual_lm", "task", f"one of {', '.join(NAMES.tasks)}", "did you mean causal_lm?"),
        ("task=5", "task", f"one of {', '.join(NAMES.tasks)}", None),
        ("data.format=mesages", "data.format", f"one of auto, {', '.join(NAMES.formats)}", "did you mean messages?"),
        ("data.validation={path: a, format: txt}", "data.validation.format", "or null", "did you mean text?"),
    ],
)
def test_a_wrong_name(
    problems: Callable[..., list[Problem]], change: str, key: str, expected: str, remedy: str | None
) -> None:
    (problem,) = problems(GOOD, change)
    assert problem.key == key and problem.message.endswith(expected) and problem.suggestion == remedy


def test_a_field_is_described_with_its_names() -> None:
    task, source = Recipe.model_fields["task"], DataSource.model_fields["format"]
    assert spelled_out(task.annotation, task.metadata, NAMES) == Literal[tuple(NAMES.tasks)]
    formats = Literal[("auto", *NAMES.formats)]
    assert spelled_out(source.annotation, source.metadata, NAMES) == formats | None
    seed = Recipe.model_fields["seed"]
    assert spelled_out(seed.annotation, seed.metadata, NAMES) is seed.annotation


def test_a_recipe_made_in_code_is_not_checked_for_names() -> None:
    made = Recipe.model_validate({"model": {"name_or_path": "m"}, "task": "other", "method": {"name": "x"}})
    assert made.task == "other"
