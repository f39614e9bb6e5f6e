"""Cells that hold nothing, columns and prompts given twice, tags that are not learnt: told apart, not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from peftcli.data.formats.answer_turns import behind_prompt
from peftcli.errors import UserError
from tests.data.tools import chat_tokenizer, ready, whole, write_jsonl
from tests.tiny import tiny_tokenizer

USER, GOOD = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good"}
BAD, SYSTEM = {"role": "assistant", "content": "bad"}, {"role": "system", "content": "Be brief."}


def test_a_number_that_is_missing_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    ages = pa.array([3.0, float("nan"), None, float("inf")])
    table = pa.table({"age": ages, "answer": ["a", "b", "c", "d"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError) as error:
        ready(chat_tokenizer(), tmp_path / "a.parquet", template="Age {age}:")
    assert [problem.line for problem in error.value.problems] == [2, 3, 4]
    made = ready(chat_tokenizer(), tmp_path / "a.parquet", template="Age {age}:", on_error="skip")
    assert len(made.train) == 1 and "Age 3.0:" in whole(made.train[0], chat_tokenizer())


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match="two columns of the name text"):
        ready(tiny_tokenizer(), path)


def test_a_tag_of_minus_100_is_not_learnt(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"tokens": ["the", "cat", "sat"], "tags": [-100, 1, 0]},
        {"tokens": ["the", "cat"], "tags": [-100, -100]},
    ]
    made = ready(
        tiny_tokenizer(cls=True), write_jsonl(tmp_path / "a.jsonl", rows), "token_classification", max_fully_masked=0.5
    )
    assert made.labels is not None and made.labels.names == ("0", "1")
    labels = np.asarray(made.train[0].labels)
    assert labels[labels >= 0].tolist() == [1, 0] and len(made.train) == 1 and made.report.counts.fully_masked == 1
    given = [{"input_ids": [5, 6], "labels": [-100, -100]}, {"input_ids": [5, 6], "labels": [-100, 1]}]
    made = ready(
        tiny_tokenizer(cls=True), write_jsonl(tmp_path / "b.jsonl", given), "token_classification", max_fully_masked=0.5
    )
    assert len(made.train) == 1


@pytest.mark.parametrize(
    ("asked", "turns", "expected"),
    [
        ("hello", [GOOD], ([USER, GOOD], 1)),
        ("hello ", [{**USER, "name": None}, GOOD], ([{**USER, "name": None}, GOOD], 1)),
        ("hello", [SYSTEM, USER, GOOD], ([SYSTEM, USER, GOOD], 2)),
        ([SYSTEM, USER], [SYSTEM, {**USER, "tool_calls": None}, GOOD], None),
        ("", [USER, GOOD], ([USER, GOOD], 0)),
        ("good", [USER, GOOD], ([{"role": "user", "content": "good"}, USER, GOOD], 1)),
    ],
)
def test_a_prompt_that_the_answers_begin_with_is_there_once(asked: Any, turns: Any, expected: Any) -> None:
    assert behind_prompt(asked, turns) == (expected or (turns, 2))


def test_a_prompt_beside_whole_conversations_is_learnt_from_once(tmp_path: Path) -> None:
    row = {"prompt": "hello", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    made = ready(chat_tokenizer(), write_jsonl(tmp_path / "a.jsonl", [row] * 2), "preference", chat_template="chatml")
    text = whole(made.train[0], chat_tokenizer())
    assert text.count("hello") == 2 and text.count("Be brief.") == 2  # once in each sequence
