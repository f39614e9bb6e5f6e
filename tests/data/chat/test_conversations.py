"""Conversations as rows hold them: roles, tools, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from peftcli.data.chat.conversations import from_messages, from_sharegpt
from peftcli.data.read.records import RowError

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}


def test_sharegpt_becomes_messages() -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho", "train": False}]
    made = from_sharegpt(turns, "Be brief.", None, "")
    assert made.messages == ({"role": "system", "content": "Be brief."}, USER, ANSWER)
    assert made.trained == (None, None, False)


def test_text_parts_are_joined_and_flags_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = from_messages(
        [{"role": "user", "content": parts}, {**ANSWER, "weight": 0}, {**ANSWER, "train": True}], None, ""
    )
    assert made.messages[0]["content"] == "ab"
    assert made.trained == (None, False, True)
    assert "weight" not in made.messages[1]


def test_tool_calls_keep_their_arguments_as_objects() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        ANSWER,
    ]
    made = from_messages(turns, '[{"type": "function", "function": {"name": "add"}}]', "")
    assert made.messages[1]["content"] == ""
    assert made.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert made.tools == [{"type": "function", "function": {"name": "add"}}]


def test_a_conversational_completion_is_all_that_is_learnt() -> None:
    made = from_messages([USER, ANSWER, USER], None, "", completion=[ANSWER])
    assert made.trained == (None, False, None, None)
    assert from_messages([USER], None, "", completion="ho").messages == (USER, ANSWER)


def test_predicting_leaves_the_last_answer_out() -> None:
    assert from_messages([USER, ANSWER], None, "", predicting=True).messages == (USER,)
    with pytest.raises(RowError, match="no message before"):
        from_messages([ANSWER], None, "", predicting=True)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no messages"),
        ("hi", "no messages"),
        ([USER, "ho"], "message 2 is not an object"),
        ([{"role": "robot", "content": "x"}], "message 1 has the role 'robot'"),
        ([{"content": "x"}], "message 1 has the role None"),
        ([{"role": "user"}], "content of message 1 is null"),
        ([{"role": "user", "content": 3}], "content of message 1 is a number"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "message 1 holds image, not only text"),
        ([{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "?"}]}], "holds image_url"),
        ([USER, {**ANSWER, "weight": 0.5}], "weight of message 2 is 0.5"),
        ([USER, {**ANSWER, "train": "no"}], "train of message 2 is 'no'"),
        ([USER, {**ANSWER, "train": True, "weight": 0}], "train and weight of message 2 disagree"),
        ([{**USER, "train": True}, ANSWER], "message 1 has train set, but its role is user"),
        ([USER, {**ANSWER, "tool_calls": "x"}], "tool_calls of message 2"),
    ],
)
def test_bad_messages_are_named(turns: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        from_messages(turns, None, "expected")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"from": "alien", "value": "x"}], "message 1 has the role 'alien'"),
        ([{"from": ["x"], "value": "x"}], "message 1 has the role"),
        ([{"from": "human"}], "turn 1 has no from and value"),
        (None, "no turns"),
    ],
)
def test_bad_turns_are_named(turns: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        from_sharegpt(turns, None, None, "expected")


def test_tools_that_are_no_list_of_schemas_are_named() -> None:
    for tools, message in (("{", "not JSON"), ('{"a": 1}', "no list|not a list")):
        with pytest.raises(RowError, match=message):
            from_messages([USER, ANSWER], tools, "")
