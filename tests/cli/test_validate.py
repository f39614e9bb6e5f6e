"""`peft validate`: exit codes, text and JSON, and nothing heavy loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.command_line import Cli

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("recipes/*.yaml")])


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_are_valid(cli: Cli, recipe: Path) -> None:
    assert SHIPPED
    done = cli("validate", recipe)
    assert (done.code, done.err) == (0, "")
    assert "is valid" in done.out


def test_json_of_a_valid_recipe(cli: Cli) -> None:
    done = cli("validate", ROOT / "configs" / "lora.yaml", "method.r=2", "--json")
    assert done.code == 0
    assert done.json == {"valid": True, "errors": []}


def test_json_of_a_wrong_recipe(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text((ROOT / "configs" / "lora.yaml").read_text().replace("  r: 8", "  lora_rank: 8"))
    done = cli("validate", recipe, "seed=-1", "--json")
    assert (done.code, done.err) == (2, "")
    first, second = done.json["errors"]
    line = recipe.read_text().splitlines().index("  lora_rank: 8") + 1
    assert (first["file"], first["line"], first["key"]) == (str(recipe), line, "method.lora_rank")
    assert "`method.r`" in first["suggestion"]
    assert (second["file"], second["line"], second["key"]) == ("override seed=-1", None, "seed")
    assert second["message"] == "seed = -1; expected 0 <= value < 4294967296"
    assert done.json["valid"] is False


def test_text_of_a_wrong_recipe_goes_to_standard_error(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text((ROOT / "configs" / "lora.yaml").read_text().replace("  r: 8", "  r: 0"))
    done = cli("validate", recipe)
    assert (done.code, done.out) == (2, "")
    assert f"{recipe}:12: method.r = 0; expected value >= 1" in done.err


def test_surroundings_are_checked(cli: Cli) -> None:
    done = cli("validate", ROOT / "configs" / "lora.yaml", "model.name_or_path=./gone", "data.path=gone.csv", "--json")
    assert done.code == 2
    assert [error["key"] for error in done.json["errors"]] == ["model.name_or_path", "data.path"]


def test_missing_recipe_in_json(cli: Cli, tmp_path: Path) -> None:
    done = cli("validate", tmp_path / "none.yaml", "--json")
    assert done.code == 2
    assert "no such file" in done.json["errors"][0]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are always Unicode there")
def test_an_argument_that_is_not_utf8(cli: Cli) -> None:
    done = cli("validate", ROOT / "configs" / "lora.yaml", "seed=\udcff", "--json")
    assert done.code == 2
    assert "\\udcff" in done.json["errors"][0]["file"]
