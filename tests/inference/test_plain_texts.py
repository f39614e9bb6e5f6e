"""Texts and files without the training's columns become what the model goes on from; its columns stay beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peftcli.data.formats.tokens_tags import words_of
from peftcli.data.other_file import columns_of, reading_spec
from peftcli.data.plain_texts import format_of_training, texts_as_inputs
from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.input_rows import beside
from peftcli.inference.open_run import Opening
from peftcli.inference.opened_run import Predicting
from peftcli.inference.predict_run import predict_run, predict_runs
from peftcli.inference.reading_file import READING, with_reading, write_reading
from peftcli.merging.merge_run import merge_run
from peftcli.recipe.schema import DataSpec
from peftcli.training.run import train
from tests.recipes import chat_rows, class_rows, write_jsonl

TEXT = {"text": "the cat"}


@pytest.mark.parametrize(
    ("task", "trained", "spec", "columns", "expected"),
    [
        ("causal_lm", "messages", {}, {"text"}, ("prompt_completion", {"prompt": "text"}, None)),
        ("causal_lm", None, {}, {"text"}, ("prompt_completion", {"prompt": "text"}, None)),
        ("causal_lm", "alpaca", {}, {"text", "id"}, ("alpaca", {"instruction": "text"}, None)),
        ("causal_lm", "text", {}, {"text"}, ("auto", {}, None)),
        ("causal_lm", "alpaca", {}, {"text", "prompt"}, ("auto", {}, None)),  # the file says itself what its prompt is
        ("causal_lm", None, {"template": "Q: {q} A:"}, {"text"}, ("auto", {}, "Q: {text} A:")),
        ("causal_lm", None, {"template": "{{q}} {q}}}"}, {"text"}, ("auto", {}, "{{q}} {text}}}")),
        ("causal_lm", None, {"template": "Q: {q} A:"}, {"text", "q"}, ("auto", {}, "Q: {q} A:")),
        ("causal_lm", None, {"format": "question_answer"}, {"text"}, ("question_answer", {"question": "text"}, None)),
        ("token_classification", "tokens_tags", {}, {"text"}, ("tokens_tags", {"tokens": "text"}, None)),
        ("token_classification", "tokens_tags", {}, {"text", "words"}, ("auto", {}, None)),
        ("seq2seq_lm", "input_target", {}, {"text"}, ("auto", {}, None)),
        ("seq2seq_lm", "prompt_completion", {}, {"text"}, ("prompt_completion", {"prompt": "text"}, None)),
        ("sequence_classification", "folders", {}, {"text"}, ("auto", {}, None)),
    ],
)
def test_a_text_takes_the_place_of_the_trained_input(task, trained, spec, columns, expected) -> None:
    found, notes = texts_as_inputs(DataSpec(**spec), task, columns, trained)
    assert (found.format, found.columns, found.template) == expected
    assert bool(notes) == (found != DataSpec(**spec))


def test_our_names_serve_where_the_recipe_has_others(tmp_path: Path) -> None:
    spec = DataSpec(path="x", columns={"text": "ticket", "label": "queue"})
    file = str(write_jsonl(tmp_path / "in.jsonl", [TEXT]))
    assert reading_spec(spec, file).columns == {"label": "queue"}
    both = str(write_jsonl(tmp_path / "both.jsonl", [{**TEXT, "ticket": "the dog"}]))
    assert reading_spec(spec, both).columns == spec.columns
    assert columns_of(both) == {"text", "ticket"}


def test_the_format_of_training_is_recognised_again(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "rows.jsonl", chat_rows(3)))
    assert format_of_training(DataSpec(path=file), "causal_lm") == "prompt_completion"
    assert format_of_training(DataSpec(path=str(tmp_path / "gone.jsonl")), "causal_lm") is None
    assert format_of_training(None, "causal_lm") is None


def test_words() -> None:
    assert words_of("The cat's 3.5 dogs, (very)good!") == [
        "The",
        "cat's",
        "3.5",
        "dogs",
        ",",
        "(",
        "very",
        ")",
        "good",
        "!",
    ]


def test_columns_stand_beside_a_prediction_and_none_is_lost() -> None:
    line = {"prediction": "a", "scores": {"a": 1.0}}
    row = {"id": 3, "prediction": "mine", "input_prediction": "too", "scores": {"a": 1.0}}
    assert beside(row, line) == {
        "id": 3, "input_input_prediction": "mine", "input_prediction": "too", **line
    }  # fmt: skip


def test_a_mapped_label_may_be_absent_and_columns_are_kept(recipe, tmp_path: Path) -> None:
    rows = [{"id": i, "ticket": row["text"], "queue": row["label"]} for i, row in enumerate(class_rows(24))]
    columns = {"text": "ticket", "label": "queue"}
    loaded = recipe("bert", "sequence_classification", rows, training__max_steps=1, data__columns=columns)
    run = train(loaded).output_dir
    keep = Predicting(keep_columns=True)
    (tmp_path / "new.csv").write_text("id,ticket\n7,the cat\n8,the dog\n", encoding="utf-8")
    lines = list(predict_run(run, str(tmp_path / "new.csv"), how=keep))
    assert [list(line)[:3] for line in lines] == [["id", "ticket", "prediction"]] * 2
    assert [(line["id"], line["ticket"]) for line in lines] == [("7", "the cat"), ("8", "the dog")]
    readme = [{"text": "the cat"}, {"text": "the dog"}]
    again = list(predict_run(run, str(write_jsonl(tmp_path / "in.jsonl", readme))))
    assert [line["scores"] for line in again] == [line["scores"] for line in lines]

    merged = tmp_path / "merged"
    merge_run(run, merged, use_alone=False)
    notes: list[str] = []
    of_model = list(predict_run(merged, str(tmp_path / "in.jsonl"), note=notes.append))
    assert [line["prediction"] for line in of_model] == [line["prediction"] for line in lines]
    assert of_model[0]["scores"] == pytest.approx(lines[0]["scores"], abs=1e-5)
    labelled = str(write_jsonl(tmp_path / "labelled.jsonl", class_rows(6)))
    ours, theirs = evaluate_run(run, labelled), evaluate_run(merged, labelled)
    assert theirs["eval_loss"] == pytest.approx(ours["eval_loss"], abs=1e-5)
    with pytest.raises(UserError, match="no validation rows of its own"):
        evaluate_run(merged)
    for use in (predict_run, evaluate_run):
        with pytest.raises(UserError, match="--checkpoint is for a run directory"):
            use(merged, labelled, opening=Opening(checkpoint="last"))
    assert len(list(predict_runs([run, merged], str(tmp_path / "in.jsonl")))) == 4
    mine = str(write_jsonl(tmp_path / "mine.jsonl", [{"text": "the cat", "run": "of the morning"}]))
    both = [(line["run"], line["input_run"]) for line in predict_runs([run, merged], mine, how=keep)]
    assert both == [(str(run), "of the morning"), (str(merged), "of the morning")]


def test_a_line_of_text_is_a_prompt_for_a_model_of_prompts(recipe, tmp_path: Path) -> None:
    loaded = recipe("llama", training__max_steps=1, training__max_new_tokens=3)
    run = train(loaded).output_dir
    (tmp_path / "in.txt").write_text("the cat\nthe dog\n", encoding="utf-8")
    asked = str(write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the cat"}, {"prompt": "the dog"}]))
    notes: list[str] = []
    assert list(predict_run(run, str(tmp_path / "in.txt"), note=notes.append)) == list(predict_run(run, asked))
    assert any("each text is read as a prompt" in note for note in notes)
    with_template = recipe("llama", training__max_steps=1, training__max_new_tokens=3, name="template",
                           data__template="Q: {prompt} A:", data__max_length=20)  # fmt: skip
    run = train(with_template).output_dir
    merge_run(run, tmp_path / "merged", use_alone=False)
    for file in (asked, str(tmp_path / "in.txt")):
        of_run, of_model = (list(predict_run(one, file)) for one in (run, tmp_path / "merged"))
        assert [line["prediction"] for line in of_model] == [line["prediction"] for line in of_run]
    kept = json.loads((tmp_path / "merged" / READING).read_text())
    (tmp_path / "merged" / READING).write_text("{}")
    with pytest.raises(UserError, match=READING):
        predict_run(tmp_path / "merged", asked)
    for key, value in (("format", "tickets"), ("trained_format", "tickets"), ("max_length", 10**30)):
        (tmp_path / "merged" / READING).write_text(json.dumps({**kept, key: value}))
        with pytest.raises(UserError, match=f"{READING}.*({value}|{key})"):
            predict_run(tmp_path / "merged", asked)
    untrained = list(predict_run(loaded.path, asked))
    assert len(untrained) == 2 and set(untrained[0]) == {"prediction", "scores", "finish_reason"}


def test_a_merged_model_knows_that_its_rows_were_plain_text(recipe, tmp_path: Path) -> None:
    for wanted, kept in (("none", "none"), ("chatml", None), (None, None)):  # a template becomes the tokenizer's
        loaded = recipe("llama", "causal_lm", chat_rows(2), data__chat_template=wanted)
        write_reading(tmp_path, loaded.recipe, "prompt_completion")
        found, trained = with_reading(replace(loaded, recipe=loaded.recipe.model_copy(update={"data": None})), tmp_path)
        assert found.recipe.data is not None and found.recipe.data.chat_template == kept
        assert trained == "prompt_completion"


def test_tags_come_with_their_words(recipe, tmp_path: Path) -> None:
    rows = [{"tokens": ["cat", "dog", "mat"], "tags": ["B-PET", "O", "O"]} for _ in range(8)]
    run = train(recipe("bert", "token_classification", rows, training__max_steps=1)).output_dir
    (tmp_path / "in.txt").write_text("cat, dog\n", encoding="utf-8")
    (line,) = predict_run(run, str(tmp_path / "in.txt"))
    assert line["tokens"] == ["cat", ",", "dog"] and len(line["prediction"]) == 3
    words = str(write_jsonl(tmp_path / "in.jsonl", [{"tokens": ["cat", ",", "dog"]}]))
    (same,) = predict_run(run, words, how=Predicting(keep_columns=True))
    assert same == line and json.dumps(same)
