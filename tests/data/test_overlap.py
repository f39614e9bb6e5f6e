"""Rows of a validation set that are training rows too are counted and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.overlap import overlap_notes, shared_rows
from peftcli.data.prepare import prepare
from peftcli.recipe.schema import DataSpec
from tests.data.tools import write_jsonl

QUESTIONS = [{"prompt": f"q {i} ?", "completion": f"a {i}"} for i in range(12)]


def told(tokenizer: Any, **data: Any) -> list[str]:
    spec = DataSpec(**data)
    return overlap_notes(prepare(spec, "causal_lm", tokenizer, seed=0), spec)


def test_a_row_in_both_files_is_told_with_what_to_do(tokenizer: Any, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", QUESTIONS[:8])
    other = write_jsonl(tmp_path / "v.jsonl", [*QUESTIONS[6:], QUESTIONS[7]])
    (note,) = told(tokenizer, path=str(train), validation={"path": str(other)})
    assert note.startswith("3 of 7 validation rows are training rows too")
    assert "peft inspect" in note and "remove them from one of the two" in note


@pytest.mark.parametrize("packing", [False, True])
def test_repeated_rows_of_one_file_go_away_with_the_remedy(tokenizer: Any, tmp_path: Path, packing: bool) -> None:
    rows = write_jsonl(tmp_path / "t.jsonl", QUESTIONS * 3)
    data = {"path": str(rows), "val_set_size": 0.25, "packing": packing}
    (note,) = told(tokenizer, **data)
    assert "validation rows are training rows too" in note and "data.group_by" in note
    assert told(tokenizer, **data, group_by="prompt") == []


def test_nothing_is_said_of_different_rows_or_of_a_stream(tokenizer: Any, tmp_path: Path) -> None:
    train = str(write_jsonl(tmp_path / "t.jsonl", QUESTIONS))
    assert told(tokenizer, path=train, val_set_size=0.25) == []
    assert told(tokenizer, path=train, val_set_size=0) == []
    assert told(tokenizer, path=train, streaming=True, val_set_size=2) == []


def test_positions_are_those_of_the_validation_set(tokenizer: Any, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", QUESTIONS[:4])
    other = write_jsonl(tmp_path / "v.jsonl", [QUESTIONS[9], QUESTIONS[2], QUESTIONS[8], QUESTIONS[0]])
    spec = DataSpec(path=str(train), validation={"path": str(other), "name": "held"})
    data = prepare(spec, "causal_lm", tokenizer, seed=0)
    found = shared_rows(data.train, data.validation)
    assert list(found) == ["held"] and np.array_equal(found["held"], [1, 3])


def test_files_of_class_folders_are_kept_apart_by_their_text(tokenizer: Any, tmp_path: Path) -> None:
    for number in range(12):
        for label in ("good", "bad"):
            file = tmp_path / "rows" / label / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"the {label} cat of house {number % 6}")

    def notes(**more: Any) -> list[str]:
        spec = DataSpec(path=str(tmp_path / "rows"), val_set_size=6, **more)
        return overlap_notes(prepare(spec, "sequence_classification", tokenizer, seed=0), spec)

    (note,) = notes()
    assert note.endswith("data.group_by: text")
    assert notes(group_by="text") == []


def test_rows_that_a_group_does_not_keep_together_are_explained(tokenizer: Any, tmp_path: Path) -> None:
    numbered = [{**row, "id": str(number)} for number, row in enumerate(QUESTIONS * 3)]
    rows = write_jsonl(tmp_path / "t.jsonl", numbered)
    (note,) = told(tokenizer, path=str(rows), val_set_size=0.25, group_by="id")
    assert "'id'" in note and "data.max_length" in note and "COLUMN" not in note
