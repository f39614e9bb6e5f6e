"""Formats of rows: recognised by their columns, mapped, filled in from a template, and refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from peftcli.data.read.records import Record, RowError
from peftcli.data.recognition.examples import Tokens
from peftcli.data.recognition.recognise import recognise
from peftcli.errors import UserError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SHARE = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
CASES = [
    ("causal_lm", {"messages": CHAT}, "messages", "messages[].role/content -> messages"),
    ("causal_lm", {"conversations": CHAT}, "messages", "conversations[].role/content (as messages) -> messages"),
    ("causal_lm", {"conversations": SHARE, "id": 1}, "sharegpt", "conversations[].from/value -> sharegpt"),
    ("causal_lm", {"messages": SHARE}, "sharegpt", "messages[].from/value (as conversations) -> sharegpt"),
    ("causal_lm", {"instruction": "a", "input": "", "output": "b"}, "alpaca", "instruction, input, output -> alpaca"),
    ("causal_lm", {"instruction": "a", "output": "b"}, "alpaca", "instruction, output -> alpaca"),
    ("causal_lm", {"instruction": "a", "instances": [{"input": "", "output": "b"}]}, "alpaca", None),
    ("causal_lm", {"prompt": "a", "completion": "b"}, "prompt_completion", "prompt, completion -> prompt_completion"),
    ("causal_lm", {"prompt": "a", "response": "b"}, "prompt_completion", None),
    ("causal_lm", {"question": "a", "answer": "b"}, "question_answer", "question, answer -> question_answer"),
    ("causal_lm", {"text": "a", "label": "b"}, "text", "text -> text"),
    ("causal_lm", {"input_ids": [1, 2]}, "pretokenized", "input_ids[] -> pretokenized"),
    ("seq2seq_lm", {"document": "a", "summary": "b"}, "input_target", None),
    ("seq2seq_lm", {"input": "a", "target": "b"}, "input_target", "input, target -> input_target"),
    ("seq2seq_lm", {"question": "a", "answer": "b"}, "question_answer", None),
    ("seq2seq_lm", {"instruction": "a", "output": "b"}, "alpaca", None),
    ("sequence_classification", {"text": "a", "label": 1}, "classification", "text, label -> classification"),
    ("sequence_classification", {"sentence1": "a", "sentence2": "b", "label": 1}, "classification", None),
    ("sequence_classification", {"premise": "a", "hypothesis": "b", "label": 1}, "classification", None),
    ("sequence_classification", {"question": "a", "answer": "b", "label": 1}, "classification", None),
    ("sequence_classification", {"review": "a", "stars": 1}, "classification", "review (as text), stars (as label)"),
    ("token_classification", {"tokens": ["a"], "ner_tags": [0]}, "tokens_tags", None),
    ("token_classification", {"id": 1, "words": ["a"], "labels": ["O"]}, "tokens_tags", None),
]


def one(values: dict[str, Any]) -> list[Record]:
    return [Record("a.jsonl", 1, values)]


@pytest.mark.parametrize(("task", "values", "name", "evidence"), CASES, ids=[f"{c[0]}-{'-'.join(c[1])}" for c in CASES])
def test_formats_are_recognised_from_the_columns(task: Any, values: Any, name: str, evidence: str | None) -> None:
    plan = recognise(one(values), task)
    assert plan.format.name == name
    assert plan.evidence.startswith(evidence or "")


@pytest.mark.parametrize(
    "columns",
    [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "text_pair")],
)
def test_text_pairs_are_both_found(columns: tuple[str, str]) -> None:
    plan = recognise(one({columns[0]: "a", columns[1]: "b", "label": 0}), "sequence_classification")
    assert plan.columns == {"text": columns[0], "text_pair": columns[1], "label": "label"}


def test_columns_and_format_can_be_given() -> None:
    values = {"text": "long story", "summary": "s", "q": "x", "a": "y"}
    plan = recognise(one(values), "causal_lm", columns={"prompt": "q", "completion": "a"})
    assert plan.format.name == "prompt_completion" and plan.columns == {"prompt": "q", "completion": "a"}
    assert plan.evidence == "q (as prompt), a (as completion) -> prompt_completion"
    assert recognise(one(values), "causal_lm", wanted="text").columns == {"text": "text"}


def test_a_template_stands_in_for_the_prompt() -> None:
    values = {"first": "a", "second": "b", "answer": "c"}
    plan = recognise(one(values), "causal_lm", template="{first} and {second}", columns={"completion": "answer"})
    assert plan.format.name == "prompt_completion"
    plan = recognise(one({**values, "label": "x"}), "sequence_classification", template="{first} / {second}")
    assert plan.columns["label"] == "label" and "{first} / {second}" in plan.evidence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"text": "txet"}}, r"data.columns.text: no column 'txet'; the columns are label, text"),
        ({"columns": {"text": "txet"}}, "did you mean text"),
        ({"wanted": "classification", "columns": {"txt": "text"}}, "has no column txt"),
        ({"columns": {"txt": "text"}}, "data.columns.txt: no format of sequence_classification has a column 'txt'"),
        ({"wanted": "messages"}, "format 'messages' does not fit task sequence_classification"),
        ({"template": "{txet} {label}"}, "the template names txet"),
        ({"template": "{text"}, "cannot be read"),
        ({"template": "{text!r}"}, "plain column name"),
        ({"template": "{}"}, "plain column name"),
    ],
)
def test_what_does_not_fit_is_named(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recognise(one({"label": "a", "text": "b"}), "sequence_classification", source="a.jsonl", **options)


def test_no_format_lists_what_was_found_and_what_is_known() -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: no format fits the columns foo, bar") as caught:
        recognise(one({"foo": 1, "bar": 2}), "causal_lm", source="a.jsonl")
    assert '{"prompt": "...", "completion": "..."}' in str(caught.value)


def test_a_missing_label_column_names_the_nearest() -> None:
    with pytest.raises(UserError, match="needs the column label; columns found: text, lable") as caught:
        recognise(one({"text": "a", "lable": "b"}), "sequence_classification", wanted="classification")
    assert "did you mean lable" in str(caught.value)


def test_a_header_that_is_one_column_with_semicolons_is_explained() -> None:
    with pytest.raises(UserError, match="separated by something else"):
        recognise(one({"text;label": "a;b"}), "sequence_classification", wanted="classification")


def test_what_is_learnt_may_be_absent_when_predicting() -> None:
    for task, values in [
        ("causal_lm", {"prompt": "a"}),
        ("causal_lm", {"question": "a"}),
        ("sequence_classification", {"text": "a"}),
        ("token_classification", {"tokens": ["a"]}),
        ("seq2seq_lm", {"input": "a"}),
    ]:
        assert recognise(one(values), task, predicting=True).predicting
        with pytest.raises(UserError):
            recognise(one(values), task)


@pytest.mark.parametrize("labels", [None, [-100, -100, 7, 8, -100]])
def test_padding_of_tokenised_rows_is_left_out(labels: list[int] | None) -> None:
    values = {"input_ids": [0, 6, 7, 8, 0], "attention_mask": [0, 1, 1, 1, 0], "labels": labels}
    values = {key: value for key, value in values.items() if value is not None}
    (row,) = recognise(one(values), "causal_lm").examples(Record("a.jsonl", 1, values))
    assert row == Tokens([6, 7, 8], labels and [-100, 7, 8])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1, 0, 1], "hides token 2, between others"),
        ([0, 0, 0], "hides all tokens"),
        ([1, 1], "not a list of 0 and 1"),
        ([1, 2, 1], "not a list of 0 and 1"),
    ],
)
def test_a_mask_that_is_no_padding_is_refused(mask: list[int], says: str) -> None:
    values = {"input_ids": [5, 6, 7], "attention_mask": mask}
    plan = recognise(one({**values, "attention_mask": [1, 1, 1]}), "causal_lm")
    with pytest.raises(RowError, match=says):
        plan.examples(Record("a.jsonl", 1, values))
