"""Several runs on one base: it is loaded once, and each run predicts what it predicts alone."""

from __future__ import annotations

import pytest

import peftcli.inference.open_run as opening
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
