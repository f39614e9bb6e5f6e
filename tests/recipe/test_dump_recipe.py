"""A dumped recipe states every default, and loads again to an equal recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from tests.recipe.conftest import GOOD, Load
from tests.recipe.pieces import SHIPPED


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("training.adam_epsilon=1e-8", "data.columns={text: '1e-4', label: 'yes'}"),
        ("data.template='${A} {q}: # not a comment'", "model.revision='null'"),
        ("data.template='{q} two\\nlines, é, \"quotes\"'",),
        ("output_dir='  spaces '", "model.revision='0x1F'", "data.group_by='2024-01-01'"),
        ("method.rank_pattern={a.b: 4, 'x: y': 2}", "method.target_modules='.*[qv]_proj$'"),
        ("method={name: several, parts: [{name: low_rank, r: 3}, {name: low_rank}], main: {name: low_rank}}",),
        ("data.validation=[{path: a, name: x}, {path: b, name: y}]",),
        ("data.template='\\u2028 {q} \\x85'", "data.split='\\ttab'"),
        ("data.cache_dir='$${HOME} $$${x}'",),
        ("method.rank_pattern={'q$${2}': 4}",),
    ],
    ids=str,
)
def test_round_trip(load: Load, changes: tuple[str, ...]) -> None:
    changes = tuple(change.replace("${A}", "$${A}") for change in changes)
    first = load(GOOD, *changes, environ={"x": "1"}).recipe
    again = load(dump_recipe(first)).recipe
    assert again == first
    assert again.as_dict() == first.as_dict()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_round_trip(path: Path, tmp_path: Path) -> None:
    assert SHIPPED
    first = load_recipe(path, [], NAMES).recipe
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(first), encoding="utf-8")
    assert load_recipe(copy, [], NAMES).recipe == first


def test_every_default_is_written(load: Load) -> None:
    recipe = load(GOOD).recipe
    written = yaml.safe_load(dump_recipe(recipe))
    assert written["training"].keys() == type(recipe.training).model_fields.keys()
    assert written["method"].keys() == type(recipe.method).model_fields.keys()
    assert written["output_dir"] == "runs/r"
