"""`peft inspect-adapter` on a trained run: the table, the JSON, the picture, the answer, the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli, Workspace


@pytest.fixture(scope="module")
def run_name() -> str:
    return "inspected"


@pytest.fixture
def run(cli: Cli, workspace: Workspace, run_name: str) -> str:
    """Return a run of two steps, trained once."""
    directory = workspace.run(run_name)
    if not (directory / "summary.json").is_file():
        recipe = workspace.recipe(run_name, training__max_steps=2, method__r=4)
        assert cli("train", recipe, "--quiet").code == 0
    return str(directory)


def test_the_table_ends_with_the_answer(cli: Cli, run: str) -> None:
    result = cli("inspect-adapter", run)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[-1].startswith("rank: ")
    assert "eff. rank" in result.out
    assert sum("attention.self.query" in line for line in lines) == 2  # two layers
    assert "the task head" in result.err


def test_json_has_every_module_with_its_spectrum(cli: Cli, run: str) -> None:
    result = cli("inspect-adapter", run, "--json")
    assert result.code == 0, result.err
    document = result.json
    assert document["method"] == "lora"
    assert len(document["modules"]) == 12
    for module in document["modules"]:
        assert len(module["singular_values"]) == module["r"] == 4
        assert module["relative_change"] > 0
        assert 1 <= module["effective_rank"] <= 4
    assert document["verdict"]["answer"] in ("too high", "too low", "fits", "unknown")


def test_the_picture_is_an_svg(cli: Cli, run: str, workspace: Workspace) -> None:
    file = workspace.path / "pictures" / "adapter.svg"
    result = cli("inspect-adapter", run, "--plot", file)
    assert result.code == 0, result.err
    drawn = file.read_text(encoding="utf-8")
    assert "attn.q" in drawn
    assert drawn.rstrip().endswith("</svg>")
    refused = cli("inspect-adapter", run, "--plot", workspace.path / "adapter.png")
    assert refused.code == 2
    assert "adapter.svg" in refused.err


def test_a_full_run_shows_what_moved(cli: Cli, workspace: Workspace) -> None:
    recipe = workspace.recipe("inspected-full", method={"name": "full"}, training__max_steps=1)
    assert cli("train", recipe, "--quiet").code == 0
    result = cli("inspect-adapter", workspace.run("inspected-full"), "--json")
    assert result.code == 0, result.err
    names = {module["module"]: module for module in result.json["modules"]}
    query = names["bert.encoder.layer.0.attention.self.query.weight"]
    assert (query["role"], query["layer"]) == ("attn.q", 0)
    assert 0 < query["relative_change"] < 1
    assert "trains no low-rank change" in result.json["verdict"]["text"]


def test_what_is_no_adapter_is_refused(cli: Cli, tmp_path: Path) -> None:
    result = cli("inspect-adapter", tmp_path)
    assert result.code == 2
    assert "neither a run directory nor an adapter" in result.err


def test_trained_rows_of_the_vocabulary_are_listed(cli: Cli, workspace: Workspace) -> None:
    llama = {"name_or_path": str(workspace.path / "llama"), "new_special_tokens": ["<call>", "<done>"]}
    data = {"path": str(workspace.path / "colours.jsonl"), "val_set_size": 0, "max_length": 16, "format": "text"}
    changes = {"model": llama, "task": "causal_lm", "data": data, "training__max_steps": 1}
    assert cli("train", workspace.recipe("inspected-rows", **changes), "--quiet").code == 0
    run = workspace.run("inspected-rows")
    shown = cli("inspect-adapter", run)
    assert shown.code == 0, shown.err
    assert "model.embed_tokens.token_adapter (rows 128, 129)" in shown.out
    found = {each["module"]: each for each in cli("inspect-adapter", run, "--json").json["modules"]}
    rows = found["lm_head.token_adapter"]
    assert rows["rows"] == [128, 129] and rows["shape"] == [2, 32] and rows["relative_change"] > 0
    alone = cli("inspect-adapter", run / "adapter", "--json")
    assert alone.code == 0, alone.err
    assert {each["module"] for each in alone.json["modules"]} == set(found)
