"""`${NAME}` in values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftcli.errors import Problem
from peftcli.recipe.yaml.environment_variables import MissingVariable, escape, expand
from tests.recipe.conftest import GOOD, Load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}/x", "1/x"),
        ("${A}${LONG_NAME}", "1two"),
        ("$${A}", "${A}"),
        ("$A {A}", "$A {A}"),
        ("costs $5", "costs $5"),
    ],
)
def test_expand(text: str, value: str) -> None:
    assert expand(text, {"A": "1", "LONG_NAME": "two"}) == value


@pytest.mark.parametrize("text", ["${", "${A", "${A-1}", "${}", "${GONE}"])
def test_what_cannot_be_filled_in(text: str) -> None:
    with pytest.raises(MissingVariable, match="environment variable"):
        expand(text, {"A": "1"})


@pytest.mark.parametrize("text", ["${A}", "$${A}", "a$b{c}", "${", "$$"])
def test_escape_is_undone(text: str) -> None:
    assert expand(escape(text), {}) == text


def test_a_plain_reference_gives_a_typed_value(load: Load) -> None:
    text = GOOD.replace("r: 8", "r: ${RANK}").replace("train.jsonl", "'${WHERE}/1'")
    recipe = load(text, environ={"RANK": "4", "WHERE": "data"}).recipe
    assert recipe.method.model_dump()["r"] == 4
    assert recipe.data is not None and recipe.data.path == "data/1"


def test_missing_variable_is_named_with_its_line(problems: Callable[..., list[Problem]]) -> None:
    (problem,) = problems(GOOD.replace("train.jsonl", "${DATA_DIRR}/train.jsonl"), environ={"DATA_DIR": "x"})
    assert (problem.file, problem.line, problem.key) == ("r.yaml", 5, "data.path")
    assert "DATA_DIRR" in problem.message and "DATA_DIR" in problem.message


def test_a_key_takes_none(problems: Callable[..., list[Problem]]) -> None:
    """It was kept as it was written, and `$` and braces in a pattern match no module."""
    text = GOOD.replace("  r: 8", "  rank_pattern: {'${WHERE}': 8}")
    (problem,) = problems(text, environ={"WHERE": "attn.q"})
    assert (problem.file, problem.line) == ("r.yaml", 8) and "in a key is not replaced" in problem.message
    assert "$${" in (problem.suggestion or "")


def test_an_override_may_take_its_place(load: Load) -> None:
    assert load(GOOD.replace("seed: 7", "seed: ${GONE}"), "seed=3").recipe.seed == 3
