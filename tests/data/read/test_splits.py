"""Which split of a folder, a pattern, a JSON object of lists or a saved data set is read: never test rows unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.read.records import Record
from peftcli.data.read.sources import resolve_source
from peftcli.data.read.splits import Purpose, split_of
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource


def texts(path: Path, purpose: Purpose = "train", **source: Any) -> list[str]:
    found = resolve_source(DataSource(path=str(path), **source), "data.path", purpose)
    return [str(row.values["text"]) for row in found.rows() if isinstance(row, Record)]


def noted(path: Path, purpose: Purpose = "train") -> str:
    return " ".join(resolve_source(DataSource(path=str(path)), "data.path", purpose).notes)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("my_train-00000-of-00002", "train"),
        ("dev", "validation"),
        ("en.val", "validation"),
        ("train_test", "test"),
        ("contest", None),
        ("trainer", None),
    ],
)
def test_words_of_a_name_say_its_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_folder_of_split_files_gives_the_one_that_is_meant(tmp_path: Path) -> None:
    for name in ("test", "train-00000-of-00002", "train-00001-of-00002", "validation"):
        write(tmp_path / f"{name}.jsonl", name)
    assert texts(tmp_path) == texts(tmp_path, split="train") == ["train-00000-of-00002", "train-00001-of-00002"]
    assert texts(tmp_path, "validation") == texts(tmp_path, split="dev") == ["validation"]
    assert texts(tmp_path / "*.jsonl") == texts(tmp_path)
    assert "test, train, validation: train is read; data.split" in noted(tmp_path)
    with pytest.raises(UserError, match=r"(?s)no split 'unseen'.*test, train, validation"):
        texts(tmp_path, split="unseen")
    with pytest.raises(UserError, match="several splits"):
        texts(tmp_path, "any")


def test_a_folder_without_training_rows_is_refused_for_training(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", "test")
    assert texts(tmp_path, "any") == texts(tmp_path, "validation") == texts(tmp_path, split="test") == ["test"]
    with pytest.raises(UserError, match=r"(?s)no train split.*data.split: test"):
        texts(tmp_path)
    write(tmp_path / "rows.jsonl", "rows")
    assert texts(tmp_path) == ["rows"]


def test_split_folders_may_hold_files(tmp_path: Path) -> None:
    for name in ("test", "train", "val"):
        write(tmp_path / name / "rows.jsonl", name)
    assert texts(tmp_path) == texts(tmp_path, split="train") == ["train"]
    assert texts(tmp_path, split="validation") == texts(tmp_path, "validation") == ["val"]
    assert texts(tmp_path / "*" / "*.jsonl") == ["train"]


def test_a_json_object_of_lists_gives_the_list_of_the_split(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"test": [{"text": "test"}], "train": [{"text": "train"}]}), encoding="utf-8")
    assert texts(path) == texts(path, split="train") == ["train"]
    assert texts(path, split="test") == ["test"]
    assert "train is read" in noted(path)
    with pytest.raises(UserError, match="test, train"):
        texts(path, split="validation")
    path.write_text(json.dumps({"test": [{"text": "test"}], "dev": [{"text": "dev"}]}), encoding="utf-8")
    with pytest.raises(UserError, match="no train split; it has test, dev"):
        texts(path)


def test_a_split_or_configuration_of_what_has_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", "rows")
    write(tmp_path / "dev.jsonl", "dev")
    assert texts(tmp_path / "dev.jsonl", split="validation") == ["dev"]
    for path in (tmp_path / "rows.jsonl", tmp_path / "dev.jsonl"):
        with pytest.raises(UserError, match=r"data.split: split 'train' has no effect"):
            texts(path, split="train")
    with pytest.raises(UserError, match=r"data.config: config 'en' has no effect"):
        texts(tmp_path / "rows.jsonl", config="en")


def test_a_saved_data_set_is_read_by_purpose(tmp_path: Path) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("test", "train", "validation")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both") == ["train"]
    assert texts(tmp_path / "both", "validation") == ["validation"]
    with pytest.raises(UserError, match="has no effect"):
        texts(tmp_path / "both" / "test", split="train")


def test_what_of_a_folder_is_not_read_is_told(tmp_path: Path) -> None:
    write(tmp_path / "mixed/a.jsonl", "a")
    assert noted(tmp_path / "mixed") == ""
    for name in ("b.xlsx", "c.jsonl.zip", "LICENSE", "README.md"):
        (tmp_path / "mixed" / name).touch()
    write(tmp_path / "mixed/more/d.jsonl", "d")
    write(tmp_path / "mixed/empty/readme.md", "nothing")
    assert texts(tmp_path / "mixed") == ["a"]
    assert noted(tmp_path / "mixed") == f"not read in the folder {tmp_path / 'mixed'}: b.xlsx, c.jsonl.zip, more/"
    for name in ("good", "bad"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.txt").write_text(name, encoding="utf-8")
    assert noted(tmp_path / "classes") == ""
    write(tmp_path / "classes/rows.jsonl", "never read")
    assert noted(tmp_path / "classes") == f"not read in the folder {tmp_path / 'classes'}: rows.jsonl"
