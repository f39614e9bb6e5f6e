"""The main job through the front door: train, evaluate, predict, merge and count, on tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Cli, Workspace, colour_rows, write_jsonl
from tests.moments import peft_with_signal


@pytest.fixture(scope="module")
def trained(workspace: Workspace) -> Path:
    """Return the directory of a finished run, trained by the command in a process of its own."""
    recipe = workspace.recipe("trained")
    done = subprocess.run(
        [sys.executable, "-m", "peftcli", "train", str(recipe), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((workspace.run("trained") / "summary.json").read_text())
    return workspace.run("trained")


def test_a_run_leaves_what_the_design_says(trained: Path) -> None:
    assert (trained / "adapter" / "adapter_config.json").is_file()
    assert (trained / "adapter" / "adapter_model.safetensors").is_file()
    assert (trained / "adapter" / "README.md").is_file()
    summary = json.loads((trained / "summary.json").read_text())
    wanted = {"status", "method", "trainable", "saved", "total", "train_loss", "eval", "train_runtime", "train_tokens"}
    assert wanted | {"tokens_per_second", "peak_memory_bytes", "versions"} <= set(summary)
    assert summary["status"] == "finished"
    assert summary["eval"]["eval_accuracy"] > summary["eval_before"]["eval_accuracy"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in lines) and any("eval_loss" in line for line in lines)
    assert "lora_alpha" in (trained / "recipe.yaml").read_text()


def test_eval_repeats_the_summary(cli: Cli, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    done = cli("eval", trained, "--json")
    assert done.code == 0, done.err
    for name in ("eval_loss", "eval_accuracy"):
        assert done.json[name] == pytest.approx(summary["eval"][name], abs=1e-6)


def test_eval_takes_other_rows_and_prints_a_table(cli: Cli, trained: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "more.jsonl", colour_rows(10))
    done = cli("eval", trained, "--data", data)
    assert done.code == 0, done.err
    assert "eval_accuracy" in done.out


def test_eval_of_a_recipe_is_the_untrained_base(cli: Cli, workspace: Workspace, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    done = cli("eval", workspace.recipe("trained"), "--json")
    assert done.code == 0, done.err
    assert done.json["eval_loss"] == pytest.approx(summary["eval_before"]["eval_loss"], abs=1e-5)


def test_predict_writes_a_line_for_each_row(cli: Cli, trained: Path, tmp_path: Path) -> None:
    rows = colour_rows(12)
    data = write_jsonl(tmp_path / "new.jsonl", [{"text": row["text"]} for row in rows])
    done = cli("predict", trained, "--input", data)
    assert done.code == 0, done.err
    printed = [json.loads(line) for line in done.out.splitlines()]
    assert len(printed) == len(rows)
    right = sum(line["prediction"] == row["label"] for line, row in zip(printed, rows, strict=True))
    assert right >= 10
    assert set(printed[0]["scores"]) == {"warm", "cold"}
    output = tmp_path / "out" / "predictions.jsonl"
    assert cli("predict", trained, "--input", data, "-o", output).out == ""
    assert [json.loads(line) for line in output.read_text().splitlines()] == printed


def test_merged_model_predicts_the_same(cli: Cli, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    done = cli("merge", trained, "-o", output, "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report["verified"] is True and report["agreement"] == 1.0 and report["max_abs_diff"] < 1e-4
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(8))
    lines = [json.loads(line) for line in cli("predict", trained, "--input", data).out.splitlines()]

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    for row, line in zip(colour_rows(8), lines, strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=16)).logits[0]
        assert model.config.id2label[int(scores.argmax())] == line["prediction"]
    assert cli("merge", trained, "-o", output).code == 2


def test_count_params_agrees_with_the_run(cli: Cli, workspace: Workspace, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    done = cli("count-params", workspace.recipe("trained"), "--json")
    assert done.code == 0, done.err
    (row,) = done.json
    for key in ("trainable", "saved", "total"):
        assert row[key] == summary[key], key
    assert row["method"] == "lora" and row["params"]["r"] == 4
    assert row["percent"] == pytest.approx(100 * row["trainable"] / row["total"])


def test_count_params_of_methods_by_name(cli: Cli, workspace: Workspace) -> None:
    arguments = ("--model", workspace.path / "llama", "--task", "causal_lm")
    many = ("--method", "lora:r=2,target_modules=[attn.q,attn.v]", "--method", "lora:r=8")
    done = cli("count-params", *arguments, *many, "--json")
    assert done.code == 0, done.err
    small, large = done.json
    assert small["params"]["r"] == 2 and large["trainable"] == 4 * small["trainable"]
    table = cli("count-params", *arguments, *many)
    assert table.code == 0 and "%" in table.out and "lora" in table.out


def test_the_same_recipe_again_is_finished(cli: Cli, workspace: Workspace, trained: Path) -> None:
    before = (trained / "summary.json").read_bytes()
    done = cli("train", workspace.recipe("trained"))
    assert done.code == 0 and "finished" in done.out + done.err
    assert (trained / "summary.json").read_bytes() == before


def test_another_recipe_is_refused_and_overwrite_replaces(cli: Cli, workspace: Workspace) -> None:
    recipe = workspace.recipe("replaced", training__num_train_epochs=1)
    assert cli("train", recipe, "--quiet").code == 0
    refused = cli("train", recipe, "method.r=2")
    assert refused.code == 2
    assert "--overwrite" in refused.err and "method.r" in refused.err
    replaced = cli("train", recipe, "method.r=2", "--overwrite", "--quiet")
    assert replaced.code == 0, replaced.err
    assert "r: 2" in (workspace.run("replaced") / "recipe.yaml").read_text()


def test_an_interrupted_run_goes_on_to_the_same_losses(cli: Cli, workspace: Workspace) -> None:
    settings: dict[str, Any] = {"training__max_steps": 40, "training__logging_steps": 1, "training__save_steps": 5}
    whole, parted = workspace.recipe("whole", **settings), workspace.recipe("parted", **settings)
    assert cli("train", whole, "--quiet").code == 0
    stopped = peft_with_signal(signal.SIGINT, "os.rename", ".partial-step-000005", "train", parted)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped after step 6 of 40" in stopped.stderr and "Traceback" not in stopped.stderr
    refused = cli("train", parted)
    assert refused.code == 2 and "--resume" in refused.err
    resumed = cli("train", parted, "--resume", "--quiet")
    assert resumed.code == 0, resumed.err

    def losses(name: str) -> dict[int, float]:
        lines = [json.loads(line) for line in (workspace.run(name) / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    assert losses("parted") == losses("whole") and len(losses("whole")) == 40
