"""Every recipe of recipes/: its memory line is computed, and its method counted from the model's real config."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.analysis.counting import count_method
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.starting.shipped_recipes import read_shipped
from tests.starting.real_models import known, memory_line, real_config

FILES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
NAMED = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@NAMED
def test_the_memory_line_is_what_is_computed(file: Path) -> None:
    recipe = load_recipe(file, [], NAMES).recipe
    assert read_shipped(file).memory_how == memory_line(recipe)


@NAMED
def test_the_method_fits_the_real_model(file: Path) -> None:
    recipe = load_recipe(file, [], NAMES).recipe
    config = real_config(recipe.model.name_or_path)
    counts = count_method(config, recipe.task, recipe.method, num_labels=recipe.model.num_labels or 2)
    assert 0 < counts.trainable <= counts.total
    assert counts.trainable < counts.total or recipe.method.name == "full"


def test_no_config_is_left_over() -> None:
    assert set(known()) == {load_recipe(file, [], NAMES).recipe.model.name_or_path for file in FILES}
