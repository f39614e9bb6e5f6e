"""Rows longer than the model's positions: cut while predicting as in training, and texts end where positions do."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.opened_run import Predicting
from peftcli.inference.predict_run import predict_run
from peftcli.tasks.decoding import Decoding
from peftcli.training.run import train
from tests.recipes import class_rows, write_jsonl

LONG = 1024  # the default of data.max_length; the tiny models have 64 positions


def test_long_texts_are_classified(recipe, tmp_path: Path) -> None:
    loaded = recipe("bert", "sequence_classification", data__max_length=LONG, training__max_steps=1)
    out = train(loaded).output_dir
    row = class_rows(1)[0]
    long = write_jsonl(tmp_path / "long.jsonl", [{**row, "text": " ".join([row["text"]] * 200)}, row])
    assert len(list(predict_run(out, str(long)))) == 2
    assert evaluate_run(out, str(long))["eval_rows"] == 2


def test_a_text_is_as_long_beside_a_longer_prompt_as_alone(recipe, tmp_path: Path) -> None:
    training = {"training__max_steps": 1, "training__max_new_tokens": 20}
    out = train(recipe("gpt2", data__max_length=LONG, **training)).output_dir
    how = Predicting(decoding=Decoding(num_beams=2))  # by batches, as on a GPU
    rows = [{"prompt": prompt} for prompt in ("the cat " * 300, "the cat", "a dog sat on", "the mat " * 12)]
    together = list(predict_run(out, str(write_jsonl(tmp_path / "all.jsonl", rows)), how=how))
    for number, row in enumerate(rows):
        (alone,) = predict_run(out, str(write_jsonl(tmp_path / f"{number}.jsonl", [row])), how=how)
        for key in ("prediction", "finish_reason"):
            assert together[number][key] == alone[key]
        assert together[number]["scores"]["tokens"] == alone["scores"]["tokens"]


METHODS = [{"name": "lora"}, {"name": "full"}, {"name": "prompt_tuning", "num_virtual_tokens": 5}]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_generation_ends_with_the_positions(recipe, tmp_path: Path, method: dict) -> None:
    training = {"training__max_steps": 1, "training__max_new_tokens": 500}
    out = train(recipe("gpt2", data__max_length=LONG, method=method, **training)).output_dir
    for prompt in ("the cat " * 300, "the cat"):
        file = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt}])
        (text,) = predict_run(out, str(file))
        assert 1 <= text["scores"]["tokens"] <= 64


def test_of_cut_and_divided_rows_it_is_told_what_is_evaluated(recipe) -> None:
    rows = [{"tokens": ["cat"] * count, "tags": ["X"] * count} for count in (4, 30, 4, 30, 4, 30, 4, 30)]
    for overflow, says in (("truncate", "cut: words behind that are in no metric"), ("split", "split")):
        words = {"data__max_length": 20, "data__overflow": overflow, "data__val_set_size": 0.5}
        loaded = recipe("bert", "token_classification", rows, name=overflow, training__max_steps=1, **words)
        notes: list[str] = []
        evaluate_run(train(loaded).output_dir, note=notes.append)
        assert any(note.endswith(f"longer than max_length 20 and {says}") for note in notes), notes
