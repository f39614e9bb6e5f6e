"""Several runs on one base: it is loaded once, and each run predicts what it predicts alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import peftcli.inference.open_run as opening
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening
from peftcli.inference.predict_run import predict_run, predict_runs
from peftcli.training.run import train
from tests.recipes import chat_rows, class_rows, write_jsonl

METHODS = [
    {"name": "lora", "r": 2},
    {"name": "bitfit"},
    {"name": "prefix_tuning", "num_virtual_tokens": 3},
    {"name": "prompt_tuning", "num_virtual_tokens": 3},
    {"name": "lora", "r": 4, "modules_to_save": ["c_fc", "classifier"]},
    {"name": "adapter", "bottleneck_size": 4},
]


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal_lm"), ("bert", "sequence_classification")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_base_serves_every_run_in_turn(recipe, tmp_path, monkeypatch, family, task, dtype) -> None:
    runs = []
    for number, method in enumerate(METHODS):
        if "modules_to_save" in method:
            method = {**method, "modules_to_save": ["mlp.c_fc" if family == "gpt2" else "intermediate.dense"]}
        loaded = recipe(family, task, name=f"run{number}", method=method, model__dtype=dtype, training__max_steps=3,
                        training__learning_rate=0.05, training__max_new_tokens=4)  # fmt: skip
        train(loaded)
        runs.append(loaded.recipe.output_dir)
    rows = [{"prompt": row["prompt"]} for row in chat_rows(3)] if task == "causal_lm" else [
        {"text": row["text"]} for row in class_rows(3)]  # fmt: skip
    data = str(write_jsonl(tmp_path / "in.jsonl", rows))
    alone = [{"run": run, **row} for run in runs for row in predict_run(run, data)]

    loads: list[object] = []
    load_model = opening.load_model

    def counted(*args: object, **kwargs: object) -> object:
        loads.append(args)
        return load_model(*args, **kwargs)

    monkeypatch.setattr(opening, "load_model", counted)
    together = list(predict_runs(runs, data))
    assert len(loads) == 1
    assert together == alone
    assert len({str(row["scores"]) for row in alone}) > len(rows)  # the runs do differ


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "freeze", "trainable": "norms"}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_complete_model_of_a_half_base_is_evaluated_as_in_training(recipe, family, method) -> None:
    """What trained is kept in float32, and training computes in the base's type."""
    loaded = recipe(family, "causal_lm", method=method, model__dtype="bfloat16", training__bf16="auto",
                    data__val_set_size=4, training__learning_rate=0.05)  # fmt: skip
    kept = train(loaded).eval
    again = evaluate_run(Path(str(loaded.recipe.output_dir)))
    assert kept is not None and again["eval_loss"] == kept["eval_loss"]
    held = evaluate_run(Path(str(loaded.recipe.output_dir)), opening=Opening(base_dtype="float32"))
    assert held["eval_loss"] != kept["eval_loss"]
