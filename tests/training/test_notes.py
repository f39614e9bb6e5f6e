"""What a run says before its first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.errors import Stopped
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder, chat_rows, write_jsonl


def test_validation_rows_that_are_training_rows_are_told(recipe, recorder) -> None:
    train(recipe(name="apart", data__val_set_size=0.25, training__max_steps=1), reporter=recorder)
    assert not [note for note in recorder.notes if "training rows too" in note]
    rows = chat_rows(8) * 2
    train(recipe("llama", "causal_lm", rows, data__val_set_size=0.5, training__max_steps=1), reporter=recorder)
    assert len([note for note in recorder.notes if "training rows too" in note]) == 1


def test_keeping_the_worst_adapter_is_told(recipe, recorder) -> None:
    words = {"data__val_set_size": 0.25, "training__max_steps": 1}
    train(recipe(name="usual", training__greater_is_better=False, **words), reporter=recorder)
    assert not [note for note in recorder.notes if "greater_is_better" in note]
    train(recipe(name="worst", training__greater_is_better=True, **words), reporter=recorder)
    assert [note for note in recorder.notes if "greater_is_better" in note] == [
        "training.greater_is_better is true, so the adapter with the largest eval_loss is kept: a smaller one is better"
    ]


def test_new_tokens_that_are_not_trained_are_told_with_the_remedy(recipe, recorder) -> None:
    tokens = ["<a>", "<b>"]
    left = {"tokens": tokens, "train": False}
    train(recipe(name="frozen", training__max_steps=1, model__new_special_tokens=left), reporter=recorder)
    told = [note for note in recorder.notes if "not trained" in note]
    assert len(told) == 1
    assert "the new tokens <a>, <b>" in told[0]
    assert "method.modules_to_save: [embed_tokens, lm_head]" in told[0]
    assert any("embeddings grown" in note for note in recorder.notes)
    trained = recipe(name="trained", training__max_steps=1, model__new_special_tokens=tokens,
                     method__modules_to_save=["embed_tokens", "lm_head"])  # fmt: skip
    recorder.notes.clear()
    train(trained, reporter=recorder)
    assert not [note for note in recorder.notes if "not trained" in note]


def test_notes_of_loading_reach_those_who_use_the_run(recipe) -> None:
    loaded = recipe(training__max_steps=1, data__val_set_size=4, model__new_special_tokens=["<a>"])
    train(loaded)
    notes: list[str] = []
    evaluate_run(loaded.recipe.output_dir, note=notes.append)
    assert any("1 special tokens added" in note for note in notes)
    assert any("embeddings grown" in note for note in notes)


def test_without_evaluation_every_row_is_trained_on_and_nothing_is_evaluated(recipe, recorder, tmp_path) -> None:
    """`eval_strategy: no`, with rows to split off and with a validation file."""
    own = write_jsonl(tmp_path / "v.jsonl", chat_rows(4))
    for number, data in enumerate(({"data__val_set_size": 4}, {"data__validation": {"path": str(own)}})):
        loaded = recipe("llama", name=f"run{number}", training__eval_strategy="no", training__max_steps=1, **data)
        summary = train(loaded, reporter=recorder)
        assert summary.data["train_rows"] == 16 and summary.eval is None and summary.eval_before is None
        assert recorder.evaluations == [] and recorder.facts["rows"].startswith("16 train, 0 validation")
    named = "data.val_set_size has no effect: training.eval_strategy is no, so all rows are trained on"
    assert recorder.notes.count(named) == 1


def test_a_run_that_made_the_model_worse_says_so_at_its_end(recipe, recorder) -> None:
    calm = train(recipe(name="calm", training__max_steps=8), reporter=recorder)
    assert not [note for note in recorder.notes if "training.learning_rate" in note]
    wild = {"training__learning_rate": 1.0, "training__bf16": False, "training__max_steps": 6}
    for given, says in (({"data__val_set_size": 0.25}, "no evaluation was better"), ({}, "the training loss rose")):
        summary = train(recipe(name=says.split()[1], **wild, **given), reporter=recorder)
        assert [note for note in recorder.notes if note.startswith(says)] == summary.notes[1:]
    assert len(calm.notes) == 1  # of the learning rate


def test_broken_rows_of_a_stream_are_listed_and_told(recipe, tmp_path) -> None:
    loaded = recipe(training__max_steps=12, data__streaming=True, data__on_error="skip", data__val_set_size=0)
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write("{broken\n")
    out = Path(loaded.recipe.output_dir)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(6))
    assert len((out / "skipped_rows.jsonl").read_text().splitlines()) == 1, "what was read ahead is listed at a stop"
    told = Recorder()
    summary = train(loaded, resume=True, reporter=told)
    (line,) = map(json.loads, (out / "skipped_rows.jsonl").read_text().splitlines())
    assert line["row"] == 17 and "broken JSON" in line["message"]
    (note,) = [note for note in summary.notes if "1 broken row of the stream was left out" in note]
    assert note in told.notes and f"{line['source']}:17" in note


def test_settings_of_a_schedule_that_a_short_run_does_not_reach_are_told(recipe, recorder) -> None:
    words = {"data__val_set_size": 0.25, "training__max_steps": None, "training__num_train_epochs": 2}  # six steps
    usual = {"training__warmup_steps": 2, "training__eval_steps": 2, "training__early_stopping_patience": 1}
    long = {"training__warmup_steps": 9, "training__eval_steps": 7, "training__early_stopping_patience": 2}
    for name, given in (("usual", usual), ("long", long)):
        train(recipe(name=name, training__lr_scheduler_type="linear", **words, **given), reporter=recorder)
    assert [note for note in recorder.notes if note.startswith("training.")] == [
        "training.warmup_steps 9: all 6 steps of this run are warm-up, so the learning rate rises up to the last one",
        "training.eval_steps 7: this run has 6 steps, so it is evaluated at its end only",
        "training.early_stopping_patience 2 cannot shorten this run: it has 1 evaluation",
    ]


def test_rows_beyond_what_a_model_without_a_table_of_positions_was_made_for_are_told(recipe, recorder) -> None:
    rows = [{"text": "the cat " * count} for count in (4, 40)]
    for family in ("llama", "gpt2"):  # one with rotary positions, and one with a table, which bounds its rows
        loaded = recipe(family, "causal_lm", rows, name=family, training__max_steps=1, data__max_length=200)
        train(loaded, reporter=recorder)
    told = [note for note in recorder.notes if "positions" in note]
    assert len(told) == 2 and "the model was made for 64 (max_position_embeddings" in told[0]
    assert told[1] == "max_length 200 is cut to the model's 64 positions"
