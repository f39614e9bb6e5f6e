"""Classification (single, several labels, regression, pairs), tags, and sequence-to-sequence rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare, prepare_for_evaluation, prepare_for_prediction
from peftcli.data.rows.padding import collate
from peftcli.data.store.labels import LabelSpec, kind_of, order_names
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec
from peftcli.tasks.task_table import task_info
from tests.data.tools import ready, whole, write_jsonl
from tests.tiny import tiny_tokenizer

TASK = "sequence_classification"


@pytest.fixture
def encoder() -> Any:
    return tiny_tokenizer(cls=True)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "single_label"),
        ([1, 0], "single_label"),
        (["1", "0"], "single_label"),
        ([True, False], "single_label"),
        ([1.0, 0.5], "regression"),
        (["5", "3.8"], "regression"),
        ([5, 3.8], "regression"),
        (["5", "3.8", "n/a"], "regression"),
        (["a", "b", "1.0"], "single_label"),
        ([["a"], []], "multi_label"),
    ],
)
def test_kind_is_read_off_the_labels(values: Any, kind: str) -> None:
    assert kind_of(values) == kind


def test_names_are_ordered_by_number_only_if_all_are_integers() -> None:
    assert order_names(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert order_names(["10", "9", "x"]) == ("10", "9", "x")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["tea", "coffee", "tea", "NA"], ("NA", "coffee", "tea")),
        ([10, 9, 2, 10], ("2", "9", "10")),
        ([True, False, True, False], ("false", "true")),
        (["null", "None", "null", "None"], ("None", "null")),
    ],
)
def test_single_labels_are_numbered_in_order(encoder: Any, tmp_path: Path, labels: Any, names: Any) -> None:
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    data = ready(encoder, write_jsonl(tmp_path / "a.jsonl", rows), TASK)
    assert data.labels == LabelSpec("single_label", names)
    text = [str(label).lower() if isinstance(label, bool) else str(label) for label in labels]
    assert [names[row.labels] for row in data.train] == text
    assert all(isinstance(row.labels, int) for row in data.train)


def test_a_csv_keeps_na_as_text(encoder: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nNA,None\nnull,NA\n", encoding="utf-8")
    data = ready(encoder, path, TASK)
    assert data.labels is not None and data.labels.names == ("NA", "None")
    assert [whole(row, encoder) for row in data.train] == ["<s>NA</s>", "<s>null</s>"]


def test_several_labels(encoder: Any, tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": ["x", "z"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["y"]}]
    data = ready(encoder, write_jsonl(tmp_path / "a.jsonl", rows), TASK)
    assert data.labels == LabelSpec("multi_label", ("x", "y", "z"))
    assert [np.asarray(row.labels).tolist() for row in data.train] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    batch = collate(list(data.train), encoder, "labelled")
    assert batch["labels"].shape == (3, 3) and batch["labels"].is_floating_point()


def test_regression(encoder: Any, tmp_path: Path) -> None:
    rows = [{"text": "a", "score": 1}, {"text": "b", "score": 2.5}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = ready(encoder, path, TASK)
    assert data.labels == LabelSpec("regression", ()) and data.labels.num_labels == 1
    assert [row.labels for row in data.train] == [1.0, 2.5]
    assert collate(list(data.train), encoder, "labelled")["labels"].is_floating_point()
    for label, message in ((float("nan"), "NaN"), ("high", "not a number"), (float("inf"), "inf")):
        bad = write_jsonl(tmp_path / "b.jsonl", [*rows, {"text": "c", "score": label}])
        with pytest.raises(UserError, match=rf"b\.jsonl:3: .*{message}"):
            ready(encoder, bad, TASK)


def test_pairs_have_both_texts(encoder: Any, tmp_path: Path) -> None:
    rows = [{"premise": "one", "hypothesis": "two", "label": n % 2} for n in range(4)]
    data = ready(encoder, write_jsonl(tmp_path / "a.jsonl", rows), TASK)
    assert data.train[0].input_ids.tolist() == encoder("one", "two")["input_ids"]


def test_long_texts_lose_their_end_and_keep_the_special_tokens(encoder: Any, tmp_path: Path) -> None:
    rows = [{"text": "word " * 50, "label": "a"}, {"text": "word", "label": "b"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = ready(encoder, path, TASK, max_length=10)
    assert data.train[0].input_ids.tolist() == encoder("word " * 50, truncation=True, max_length=10)["input_ids"]
    assert (data.report.counts.kept, data.report.counts.truncated) == (2, 1)
    pairs = [{"text": "word " * 50, "text_pair": "x", "label": n} for n in range(2)]
    made = ready(encoder, write_jsonl(tmp_path / "p.jsonl", pairs), TASK, max_length=10)
    assert made.report.counts.truncated == 2
    dropped = ready(encoder, write_jsonl(tmp_path / "d.jsonl", [*rows, {"text": "x", "label": "a"}]), TASK,
                    max_length=10, overflow="drop")  # fmt: skip
    assert (dropped.report.counts.kept, dropped.report.counts.dropped) == (2, 1)
    with pytest.raises(UserError, match="would give one label to several rows"):
        ready(encoder, path, TASK, max_length=10, overflow="split")


def test_one_label_only_is_refused(encoder: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}] * 3)
    with pytest.raises(UserError, match="only the label 'x'"):
        ready(encoder, path, TASK)


def test_the_recipe_may_decide_the_kind(encoder: Any, tmp_path: Path) -> None:
    from peftcli.data.prepare import prepare

    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 3}])
    spec = DataSpec(path=str(path), val_set_size=0.0)
    data = prepare(spec, TASK, encoder, seed=0, problem_type="regression")
    assert data.labels == LabelSpec("regression", ()) and [row.labels for row in data.train] == [1.0, 3.0]


def test_labels_that_training_does_not_have(encoder: Any, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    other = write_jsonl(tmp_path / "v.jsonl", [{"text": "a", "label": "x"}, {"text": "c", "label": "z"}])
    with pytest.raises(UserError, match=r"v\.jsonl:2: the label 'z' does not occur in training"):
        ready(encoder, train, TASK, validation={"path": str(other)})
    data = ready(encoder, train, TASK, validation={"path": str(other)}, on_error="skip")
    assert len(data.validation[""]) == 1
    assert [(bad["row"], bad["message"]) for bad in data.report.skipped] == [
        (2, "the label 'z' does not occur in training")
    ]
    told = "v.jsonl:2 left out: the label 'z' does not occur in training"
    assert [note for note in data.report.notes if note.endswith(told)]
    spec = DataSpec(path="x.jsonl", on_error="skip")  # of a run: its evaluation of other files leaves rows out, too
    rows, notes = prepare_for_evaluation(str(other), spec, TASK, encoder, data.labels)
    assert len(rows) == 1 and [note for note in notes if note.endswith(told)]
    with pytest.raises(UserError, match="labels in training: x, y"):
        prepare_for_evaluation(str(other), DataSpec(path="x.jsonl"), TASK, encoder, data.labels)


def test_evaluation_rows_use_the_runs_numbers(encoder: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "y"}])
    rows, notes = prepare_for_evaluation(
        str(path), DataSpec(path="x.jsonl"), TASK, encoder, LabelSpec("single_label", ("x", "y"))
    )
    assert [row.labels for row in rows] == [1] and notes == []


def test_prediction_rows_need_no_label(encoder: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a " * 99}, {"text": "b", "label": "odd"}])
    rows = prepare_for_prediction(str(path), DataSpec(path="x.jsonl", max_length=8, overflow="split"), TASK, encoder)
    assert [len(row.input_ids) for row in rows] == [8, 3] and rows[0].labels is None


class TestTags:
    task = "token_classification"
    rows = ({"tokens": ["Hello", "wonderfulness"], "tags": ["O", "B-X"]}, {"tokens": ["today"], "tags": ["O"]})

    def test_the_first_token_of_a_word_has_its_tag(self, encoder: Any, tmp_path: Path) -> None:
        data = ready(encoder, write_jsonl(tmp_path / "a.jsonl", self.rows), self.task)
        assert data.labels == LabelSpec("token", ("B-X", "O"))
        row = data.train[0]
        assert row.input_ids.tolist() == encoder("Hello wonderfulness")["input_ids"], "as running text"
        labels = np.asarray(row.labels)
        first = len(encoder("Hello")["input_ids"]) - 1  # behind <s> and the pieces of Hello
        assert len(labels) > first + 2 and np.flatnonzero(labels >= 0).tolist() == [1, first]
        assert labels[[1, first]].tolist() == [1, 0]
        assert data.report.supervised_tokens == 3

    def test_counts_must_agree(self, encoder: Any, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [*self.rows, {"tokens": ["a", "b"], "tags": ["O"]}])
        with pytest.raises(UserError, match=r"a\.jsonl:3: 2 tokens but 1 tags"):
            ready(encoder, path, self.task)

    def test_prediction_rows_number_the_words(self, encoder: Any, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["Hello", "wonderfulness", "x"]}])
        (row,) = prepare_for_prediction(str(path), DataSpec(path="x.jsonl"), self.task, encoder)
        labels = np.asarray(row.labels)
        assert labels[labels >= 0].tolist() == [0, 1, 2]

    def test_long_rows_are_cut_or_split(self, encoder: Any, tmp_path: Path) -> None:
        rows = [{"tokens": ["a"] * 40, "tags": ["O"] * 39 + ["B-X"]}, *self.rows]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        cut = ready(encoder, path, self.task, max_length=12)
        assert len(cut.train[0].input_ids) == 12 and cut.report.counts.truncated >= 1
        split = ready(encoder, path, self.task, max_length=12, overflow="split")
        tags = np.concatenate([np.asarray(row.labels) for row in split.train if row.row == 1])
        assert (tags >= 0).sum() == 40


class TestSeq2seq:
    task = "seq2seq_lm"

    def test_inputs_and_targets_end_with_eos(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(add_eos=True)
        rows = [{"input": "Hello there", "target": "Hi"}, {"input": "a", "target": "b c d"}]
        data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", rows), self.task)
        row = data.train[0]
        assert row.input_ids.tolist() == tokenizer("Hello there")["input_ids"]
        assert np.asarray(row.labels).tolist() == tokenizer("Hi")["input_ids"]
        batch = collate(list(data.train), tokenizer, task_info(self.task).rows)
        assert batch["labels"].shape[1] == max(len(np.asarray(row.labels)) for row in data.train)
        assert (batch["labels"] == -100).any()

    def test_cut_rows_keep_eos(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(add_eos=True)
        rows = [{"input": "Hello there " * 9, "target": "Hi " * 30}]
        row = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", rows), self.task, max_length=8).train[0]
        assert len(row.input_ids) == len(np.asarray(row.labels)) == 8
        assert row.input_ids[-1] == np.asarray(row.labels)[-1] == tokenizer.eos_token_id

    def test_targets_are_cut_to_what_a_decoder_can_place(self, tmp_path: Path) -> None:
        """LED's decoder has a sixteenth of its encoder's positions; the table's own error was a traceback."""
        tokenizer = tiny_tokenizer(add_eos=True)
        path = write_jsonl(tmp_path / "a.jsonl", [{"input": "Hello there " * 9, "target": "Hi " * 30}])
        spec = DataSpec(path=str(path), val_set_size=0.0, max_length=40)
        data = prepare(spec, self.task, tokenizer, seed=0, target_positions=12)
        row = data.train[0]
        assert (len(row.input_ids), len(np.asarray(row.labels))) == (40, 12)
        assert np.asarray(row.labels)[-1] == tokenizer.eos_token_id
        assert data.report.counts.truncated == 1
        assert "a target has at most 12 tokens: the model's decoder has no more positions" in data.report.notes
        rows, notes = prepare_for_evaluation(str(path), spec, self.task, tokenizer, target_positions=12)
        assert len(np.asarray(rows[0].labels)) == 12 and any("at most 12 tokens" in note for note in notes)
        strict = spec.model_copy(update={"max_length": 200, "overflow": "error"})
        with pytest.raises(UserError, match="a target of 91 tokens, and the model's decoder has 12 positions"):
            prepare(strict, self.task, tokenizer, seed=0, target_positions=12)

    def test_splitting_is_refused(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"input": "a", "target": "b"}])
        with pytest.raises(UserError, match="would part an input from its target"):
            ready(tiny_tokenizer(), path, self.task, overflow="split")
