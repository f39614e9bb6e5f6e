"""How the cells of a label column are read: what the file means is read, and a guess is said."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepared_data import PreparedData
from peftcli.data.store.label_form import alike, judge, listed
from peftcli.errors import UserError
from tests.data.tools import ready, write_jsonl
from tests.tiny import tiny_tokenizer

TASK = "sequence_classification"


def prepared(path: Path, labels: list[Any], **data: Any) -> PreparedData:
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    return ready(tiny_tokenizer(cls=True), write_jsonl(path / "a.jsonl", rows), TASK, **data)


def of_csv(path: Path, labels: list[Any]) -> PreparedData:
    with open(path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *([f"text {n}", label] for n, label in enumerate(labels))])
    return ready(tiny_tokenizer(cls=True), path / "a.csv", TASK)


def vectors(data: PreparedData) -> list[list[int]]:
    return [np.asarray(row.labels).astype(int).tolist() for row in data.train]


def names(data: PreparedData) -> tuple[str, ...]:
    assert data.labels is not None
    return data.labels.names


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0], [0, 1], [1, 0]],
        [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
        [[1.0, 0.0], [1.0, 1.0]],
        [[True, False], [False, True]],
    ],
)
def test_vectors_of_zeros_and_ones_are_columns(tmp_path: Path, rows: list[list[Any]]) -> None:
    data = prepared(tmp_path, rows)
    assert vectors(data) == [[int(flag) for flag in row] for row in rows]
    assert names(data) == tuple(map(str, range(len(rows[0]))))
    assert any("0/1 vectors" in note for note in data.report.notes)


def test_a_vector_of_another_length_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:501: the label is \[1\]"):
        prepared(tmp_path, [*[[1, 0], [0, 1]] * 250, [1]])


def test_validation_rows_are_read_as_the_training_rows(tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "v.jsonl", [{"text": "a", "label": [0, 1, 1]}])
    data = prepared(tmp_path, [[1, 0, 0], [0, 1, 0]], validation={"path": str(other)})
    assert np.asarray(data.validation[""][0].labels).tolist() == [0, 1, 1]


def test_lists_in_cells_of_a_csv_are_several_labels(tmp_path: Path) -> None:
    for cells in (["['a', 'b']", "['a']", "[]"], ['["a", "b"]', '["a"]', "[]"]):
        data = of_csv(tmp_path, cells)
        assert names(data) == ("a", "b") and vectors(data) == [[1, 1], [1, 0], [0, 0]]
        assert any("lists written as text" in note for note in data.report.notes)
    assert vectors(of_csv(tmp_path, ["[1 0]", "[0 1]"])) == [[1, 0], [0, 1]]
    assert listed("[see below]") is None and listed("plain") is None


def test_whole_numbers_with_a_point_are_classes_and_said(tmp_path: Path) -> None:
    data = of_csv(tmp_path, ["1.0", "0.0", "1.0", "0.0"])
    assert names(data) == ("0.0", "1.0")
    assert any("2 distinct values" in note and "regression" in note for note in data.report.notes)
    assert judge([1.0, 2.0, 3.0] * 2, None).kind == "single_label"
    assert judge(["10.0", "9.0"] * 9, None).kind == "single_label"
    scale = judge([float(number) for number in range(50)], None)
    assert scale.kind == "regression" and "single_label" in scale.notes[0]
    assert judge([1.0, 0.0], "regression").notes == () == judge([0.5, 1.0], None).notes


def test_labels_of_a_text_with_a_delimiter(tmp_path: Path) -> None:
    from peftcli.data.prepare import prepare
    from peftcli.recipe.schema import DataSpec

    labels = ["a|b", "a", "b", "c|a"]
    data = prepared(tmp_path, labels)
    assert any("'a|b' look like several labels" in note for note in data.report.notes)
    spec = DataSpec(path=str(tmp_path / "a.jsonl"), val_set_size=0.0)
    made = prepare(spec, TASK, tiny_tokenizer(cls=True), seed=0, problem_type="multi_label")
    assert names(made) == ("a", "b", "c") and vectors(made) == [[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert judge(["New York, NY", "Paris, France"], None).notes == ()


@pytest.mark.parametrize(
    ("cells", "delimiter"),
    [(["red|round"], "|"), (["red"], "|"), (["red; round", "red, blue"], ";"), (["green|flat"], ""), ([["red"]], "")],
)
def test_known_labels_tell_what_stands_between_them_where_few_cells_cannot(cells: list[Any], delimiter: str) -> None:
    assert judge(cells, "multi_label", ("red", "round")).form.delimiter == delimiter


def test_rows_of_a_run_are_found_in_the_cache_with_its_labels(tmp_path: Path) -> None:
    from peftcli.data.prepare import prepare
    from peftcli.recipe.schema import DataSpec

    prepared(tmp_path, ["a|b", "a", "b", "c|a"])
    spec = DataSpec(path=str(tmp_path / "a.jsonl"), val_set_size=0.0, cache_dir=str(tmp_path / "cache"))
    first = prepare(spec, TASK, tiny_tokenizer(cls=True), seed=0, problem_type="multi_label")
    entries = sorted((tmp_path / "cache").rglob("*"))
    again = prepare(spec, TASK, tiny_tokenizer(cls=True), seed=0, labels=first.labels)
    assert vectors(again) == vectors(first)
    assert sorted((tmp_path / "cache").rglob("*")) == entries


def test_labels_that_are_alike_are_said(tmp_path: Path) -> None:
    assert alike(["pos", " pos", "Pos", "neg"]) == [["pos", " pos", "Pos"]] and alike(["0", "0.0"])
    data = prepared(tmp_path, ["pos", " pos", "Pos", "neg"])
    assert any("' pos'" in note and "differ only in case" in note for note in data.report.notes)


def test_labels_that_mix_numbers_and_true_are_said_with_their_first_rows(tmp_path: Path) -> None:
    data = prepared(tmp_path, [1, 0, True, False, 1, 2])
    assert names(data) == ("0", "1", "2", "false", "true")
    said = [note.replace(str(tmp_path), "") for note in data.report.notes if "differ only" in note]
    assert "the labels '0' (/a.jsonl:2), 'false' (/a.jsonl:4) differ only in case, spaces or spelling" in said[0]
    assert "'1' (/a.jsonl:1), 'true' (/a.jsonl:3)" in said[1]
    several = prepared(tmp_path, [["1", "a"], ["a"], ["TRUE"]])
    assert any("'1' (" in note and "a.jsonl:3)" in note for note in several.report.notes)
    assert not any("differ only" in note for note in prepared(tmp_path, [True, False, True]).report.notes)
