"""`peft compare` the whole way: a tiny encoder and a tiny decoder are trained, runs that exist are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.record.run_directory import RunDirectory
from peftcli.studies.compare.run_groups import ExistingRun, differences, grouped
from tests.command_line import Result, Workspace

SHORT = ["training.max_steps=4", "training.bf16=false", "training.device=cpu"]


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in document["methods"]}


@pytest.fixture
def place(workspace: Workspace, tmp_path: Path) -> Path:
    """Return a directory with the encoder, its rows and a recipe, in which a study is made."""
    for name in ("bert", "llama"):
        shutil.copytree(workspace.path / name, tmp_path / name)
    shutil.copy(workspace.path / "colours.jsonl", tmp_path)
    return tmp_path


def test_methods_are_searched_seeded_and_reported_and_the_same_command_goes_on(cli, workspace, tmp_path) -> None:
    recipe, study = workspace.recipe("compared"), tmp_path / "study"
    methods = 'lora,full,"lora:target_modules=[nowhere]"'.replace('"', "")
    command = ["compare", recipe, "--methods", methods, "--rates", 2, "--seeds", 1, "-o", study, *SHORT]
    result: Result = cli(*command, "--json")
    assert result.code == 0, result.err
    assert result.json == json.loads((study / "comparison.json").read_text())
    rows = rows_of(result.json)
    assert list(rows) == ["lora", "full", "lora:target_modules=[nowhere]", "head alone"]
    assert result.json["reference"] == "head alone" and result.json["searched"]
    refused = rows["lora:target_modules=[nowhere]"]
    assert refused["status"] == "refused" and "nowhere" in refused["reason"] and refused["scores"] == []
    for label in ("lora", "full", "head alone"):
        row = rows[label]
        assert row["status"] == "finished" and len(row["scores"]) == 1 and row["score"] is not None
        assert row["rate"] in [point["rate"] for point in row["rates"]] and len(row["rates"]) >= 2
        assert row["peak_memory_bytes"] > 0 and row["tokens_per_second"] > 0 and row["adapter_bytes"] > 0
        assert row["curves"][0]["steps"][0] == 0 and row["curves"][0]["steps"][-1] == 4
    assert rows["lora"]["percent"] < rows["full"]["percent"] == 100.0
    assert all(rows[label]["merges"] for label in ("lora", "full"))
    assert "plan: 3 methods" in result.err and "seed 1 of 1" in result.err
    held_out = {one.summary()["inputs"]["validation_rows"][""] for one in runs_of(study, rows)}
    assert len(held_out) == 1, "a fresh seed moved the held-out rows"

    trained = {path: path.stat().st_mtime_ns for path in study.glob("trials/*/summary.json")}
    for name in ("comparison.json", next(path.stem for path in study.glob("results/lora.score*.json"))):
        (study / name).unlink(missing_ok=True)
    again = cli(*command, "--json")
    assert again.code == 0 and rows_of(again.json)["lora"]["scores"] == rows["lora"]["scores"]
    assert {path: path.stat().st_mtime_ns for path in study.glob("trials/*/summary.json")} == trained


def runs_of(study: Path, rows: dict[str, dict[str, Any]]) -> list[RunDirectory]:
    return [RunDirectory(study / run) for row in rows.values() for run in row["runs"]]


def test_language_models_are_measured_against_their_base_and_a_diverging_method_is_a_row(cli, workspace, tmp_path):
    causal = {"model__name_or_path": str(workspace.path / "llama"), "task": "causal_lm", "data__format": "text"}
    one = workspace.recipe("steady", **causal)
    other = workspace.recipe("wild", **causal, method={"name": "full"}, training__learning_rate=100.0)
    result = cli("compare", one, other, "--no-search", "--seeds", 1, "-o", tmp_path / "study", "--json", *SHORT,
                 "training.optim=sgd", "training.max_grad_norm=0", "training.max_steps=12")  # fmt: skip
    assert result.code == 0, result.err
    rows = rows_of(result.json)
    assert rows["steady"]["status"] == "finished" and result.json["reference"] == "base"
    assert not result.json["searched"] and any("--no-search" in note for note in result.json["notes"])
    assert rows["wild"]["status"] == "diverged" and rows["wild"]["reason"]


def test_runs_of_one_name_are_told_apart_by_their_folders(workspace) -> None:
    changes = [[], ["training.weight_decay=0.5"]]
    recipes = [load_recipe(workspace.recipe("named"), each, NAMES) for each in changes]
    paths = [Path("x/run"), Path("y/run")]
    runs = [ExistingRun(path, loaded, {}) for path, loaded in zip(paths, recipes, strict=True)]
    assert list(differences(runs)) == ["training.weight_decay differs: 0.0 in x/run; 0.5 in y/run"]


def test_the_same_run_three_times_is_three_rows_of_a_seed_each(workspace) -> None:
    loaded = load_recipe(workspace.recipe("thrice"), [], NAMES)
    groups = grouped([ExistingRun(Path(name), loaded, {}) for name in ("a", "b", "c")])
    assert [len(group.runs) for group in groups] == [1, 1, 1]


def test_runs_that_differ_in_an_order_that_decides_are_no_seeds_of_one_row(workspace) -> None:
    patterns = ("{attn: 4, attn.q: 2}", "{attn.q: 2, attn: 4}")
    loaded = [load_recipe(workspace.recipe("ordered"), [f"method.rank_pattern={text}", f"seed={seed}"], NAMES)
              for seed, text in enumerate(patterns)]  # fmt: skip
    groups = grouped([ExistingRun(Path(name), one, {}) for name, one in zip("ab", loaded, strict=True)])
    assert [len(group.runs) for group in groups] == [1, 1] and groups[0].label != groups[1].label


def test_runs_that_exist_are_compared_as_they_are(cli, workspace, tmp_path) -> None:
    paths = []
    for name, changes in {"a": [], "b": ["seed=1"], "c": ["method={name: bitfit}"], "d": ["data.split_seed=7"]}.items():
        path = tmp_path / name
        recipe = workspace.recipe("existing")
        split = [] if name == "d" else ["data.split_seed=0"]
        assert cli("train", recipe, *SHORT, *changes, *split, "-o", path, "--quiet").code == 0
        paths.append(path)
    result = cli("compare", *paths[:3], "-o", tmp_path / "study", "--json")
    assert result.code == 0, result.err
    rows = rows_of(result.json)
    assert list(rows) == ["lora", "bitfit"], "two seeds of one method are one row"
    assert len(rows["lora"]["scores"]) == 2 and rows["lora"]["runs"] == [str(path) for path in paths[:2]]
    assert any(text.startswith("seed differs: 0 in a, c; 1 in b") for text in result.json["differs"])
    assert cli("compare", paths[1], paths[2], "-o", tmp_path / "study").code == 0
    kept = list((tmp_path / "study" / "scores").glob("before-training*"))
    assert len(kept) == 2, "scores of another run's base were taken for this one's"
    other = cli("compare", paths[0], paths[3], "-o", tmp_path / "other")
    assert other.code == 2 and "other held-out rows" in other.err and "data.split_seed" in other.err
    assert cli("compare", paths[0]).code == 2
    assert "for recipes" in cli("compare", *paths[:2], "--budget", "3m").err
