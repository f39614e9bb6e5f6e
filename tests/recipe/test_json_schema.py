"""The JSON schema: a valid document, in step with the loader on shipped recipes and on misspelt keys."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from peftcli.names import NAMES
from peftcli.recipe.json_schema import recipe_schema
from peftcli.recipe.yaml.yaml_lines import parse_yaml
from tests.recipe.conftest import GOOD, SMALL
from tests.recipe.pieces import SHIPPED


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return recipe_schema(NAMES)


@pytest.fixture(scope="module")
def small() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(recipe_schema(SMALL))


def data(text: str) -> dict[str, Any]:
    read: dict[str, Any] = parse_yaml(text, {}).data
    return read


def test_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_fit_and_misspelt_keys_do_not(schema: dict[str, Any], path: Path) -> None:
    assert SHIPPED
    validator = jsonschema.Draft202012Validator(schema)
    good = data(path.read_text(encoding="utf-8"))
    assert list(validator.iter_errors(good)) == []
    for block in ("model", "data", "method", "training"):
        bad = copy.deepcopy(good)
        bad[block]["misspelt_key"] = 1
        assert not validator.is_valid(bad), block


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({"name": "low_rank", "r": 4}, True),
        ({"name": "low_rank", "target_r": 4}, False),
        ({"name": "budget", "target_r": 4}, True),
        ({"name": "low_rank", "r": 0}, False),
        ({"name": "low_rank", "r": "8"}, False),
        ({"name": "nothing"}, False),
        ({"r": 8}, False),
        ({"name": "several", "parts": [{"name": "low_rank", "r": 4}]}, True),
        ({"name": "several", "parts": [{"name": "low_rank", "rr": 4}]}, False),
        ({"name": "several", "parts": []}, False),
    ],
)
def test_the_name_decides_which_keys_there_are(
    small: jsonschema.Draft202012Validator, change: dict[str, Any], valid: bool
) -> None:
    assert small.is_valid({**data(GOOD), "method": change}) is valid


def test_optimizers_and_metrics_are_listed(schema: dict[str, Any]) -> None:
    training = schema["$defs"]["TrainingSpec"]["properties"]
    assert "adamw_torch" in training["optim"]["enum"]
    assert "f1_macro" in training["metrics"]["items"]["enum"]


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    for name, definition in {**schema["$defs"], "Recipe": schema}.items():
        if definition.get("additionalProperties") is False:
            for field, described in definition["properties"].items():
                yield name, field, described, field in definition.get("required", [])


def test_every_field_has_a_description_and_a_default(schema: dict[str, Any]) -> None:
    found = list(fields(schema))
    assert len(found) > 100
    bare = [f"{name}.{field}" for name, field, it, _ in found if "description" not in it and field != "name"]
    assert bare == []
    open_ended = [f"{name}.{field}" for name, field, it, required in found if not required and "default" not in it]
    assert open_ended == []


def test_references_stay_inside(schema: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(schema))
    assert found
    assert {reference for reference in found if reference.removeprefix("#/$defs/") not in schema["$defs"]} == set()


_OF_ANY_SIZE = {"split_rule", "lora_alpha", "alpha", "alpha_pattern", "decompose_factor"}
"""Whole numbers that are no size, no count and no seed."""


def test_every_size_count_and_seed_has_an_upper_bound(schema: dict[str, Any]) -> None:
    """A number beyond what a tensor's side or a generator's seed can be is an error of the recipe, no traceback."""
    found = dict(_integers(schema, ()))
    assert len(found) > 100
    open_ones = {path for path, entry in found.items() if not {"maximum", "exclusiveMaximum"} & entry.keys()}
    assert {path for path in open_ones if not _OF_ANY_SIZE & set(path)} == set()


def _integers(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(node, dict):
        if "integer" in (kinds if isinstance(kinds := node.get("type"), list) else [kinds]):
            yield path, node
        for key, value in node.items():
            yield from _integers(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _integers(value, (*path, str(number)))
