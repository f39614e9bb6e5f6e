"""A chat row whose answer has no text is learnt as it stands, and said with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftcli.data.prepared_data import PreparedData
from tests.data.tools import chat_tokenizer, ready, write_jsonl

USER, GOOD = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good"}
EMPTY = {"role": "assistant", "content": " \n"}
CALL = {"type": "function", "function": {"name": "search", "arguments": {}}}


def said(data: PreparedData) -> list[str]:
    return [note for note in data.report.notes if "an answer without text" in note]


def of(path: Path, rows: list[Any], **data: Any) -> PreparedData:
    return ready(chat_tokenizer(), write_jsonl(path, rows), **{"chat_template": "chatml", **data})


@pytest.mark.parametrize("template", ["chatml", "none"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_counted_and_the_first_is_named(tmp_path: Path, template: str, streaming: bool) -> None:
    rows = [[USER, GOOD], [USER, EMPTY, USER, GOOD], [USER, {**EMPTY, "content": ""}], [USER, EMPTY, USER, EMPTY]]
    made = of(tmp_path / "a.jsonl", [{"messages": row} for row in rows], chat_template=template, streaming=streaming)
    (note,) = said(made)
    assert f"{tmp_path / 'a.jsonl'}:2 (remove such rows" in note and " rows teach an answer" in note
    if not streaming:
        assert note.startswith("3 rows teach") and len(made.train) == 4
    other = of(tmp_path / "b.jsonl", [{"messages": row} for row in rows], chat_template=template)  # from the cache
    assert f"{tmp_path / 'b.jsonl'}:2 (" in said(other)[0]


def test_what_is_not_learnt_or_says_something_else_is_not_counted(tmp_path: Path) -> None:
    meant = [
        [USER, {**EMPTY, "train": False}, USER, GOOD],
        [USER, {**EMPTY, "tool_calls": [CALL]}, {"role": "tool", "content": "found"}, GOOD],
        [USER, GOOD, {"role": "user", "content": ""}, GOOD],
    ]
    assert not said(of(tmp_path / "a.jsonl", [{"messages": row} for row in meant]))
    earlier = [{"messages": [USER, EMPTY, USER, GOOD]}]
    assert not said(of(tmp_path / "b.jsonl", earlier, train_on="last_turn"))
    assert said(of(tmp_path / "b.jsonl", earlier, train_on="all")) and said(of(tmp_path / "b.jsonl", earlier))


def test_sharegpt_and_earlier_rounds_are_counted(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": ""}]
    assert said(of(tmp_path / "a.jsonl", [{"conversations": turns}]))[0].startswith("1 row teaches")
    history = {"instruction": "and now?", "output": "yes", "history": [["first", ""]]}
    assert said(of(tmp_path / "b.jsonl", [history]))
