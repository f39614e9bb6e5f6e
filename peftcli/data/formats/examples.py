"""From a row of a format to what a task learns from: a text, a prompt with its completion, a conversation, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.conversations import Conversation, from_messages, from_sharegpt
from peftcli.data.formats.recognition import CAUSAL, CLASSIFICATION, SEQ2SEQ, TEMPLATED, TOKENS, Plan, cell
from peftcli.data.read.records import Record, RowError
from peftcli.ignored_label import IGNORED
from peftcli.recipe.schema import TaskName


@dataclass(frozen=True, slots=True)
class Text:
    """A document: every token is learnt."""

    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair, and its raw label: one value, a list, or None when predicting."""

    text: str
    pair: str | None
    label: Any


@dataclass(frozen=True, slots=True)
class Tagged:
    """Words and one raw tag for each; `tags` is None when predicting."""

    tokens: list[str]
    tags: list[Any] | None


@dataclass(frozen=True, slots=True)
class InputTarget:
    """What a sequence-to-sequence model reads and writes; `target` is None when predicting."""

    input: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row that is tokenised already; labels are token labels, or one raw label."""

    input_ids: list[int]
    labels: Any


Example = Text | Conversation | Labelled | Tagged | InputTarget | Tokens


def build(plan: Plan, record: Record, task: TaskName) -> list[Example]:
    """Return the examples of a row: one, except for nested alpaca instances.

    Raises:
        RowError: the row does not have the shape of the plan's format.
    """
    return _BUILDERS[plan.format.name](plan, record.values, task)


def text_of(values: Mapping[str, Any], column: str | None, name: str, expected: str, *, empty: bool = False) -> str:
    """Return a column's text; numbers become text.

    Raises:
        RowError: it is absent, null, NaN, a list or an object, or (unless `empty`) blank.
    """
    value = cell(values, column)
    if column is None or column not in values:
        raise RowError(f"no column {column or name!r}; the row has {', '.join(values) or 'none'}", expected)
    if isinstance(value, str):
        if not empty and not value.strip():
            raise RowError(f"the column {column!r} is empty", expected)
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError(f"the column {column!r} is {'null' if value is None else 'NaN'}", expected)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise RowError(f"the column {column!r} holds a {type(value).__name__}, not text", expected)


def _prompt(plan: Plan, values: Mapping[str, Any], *, empty: bool = False) -> str:
    """Return the text that the template makes, or the format's own column."""
    name = TEMPLATED[plan.format.name]
    if plan.template:
        return plan.template.render(values)
    return text_of(values, plan.columns.get(name), name, plan.format.expected, empty=empty)


def _target(plan: Plan, values: Mapping[str, Any], name: str) -> str | None:
    """Return what is learnt; None when predicting (there it may be absent, and is not looked at)."""
    if plan.predicting:
        return None
    return text_of(values, plan.columns.get(name), name, plan.format.expected)


def _sequence(task: TaskName, prompt: str, target: str | None) -> Example:
    return InputTarget(prompt, target) if task == SEQ2SEQ else Conversation.single(prompt, target)


def _text(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    return [Text(_prompt(plan, values))]


def _prompt_completion(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    prompt = cell(values, plan.columns.get("prompt"))
    if isinstance(prompt, list) and not plan.template:
        answer = None if plan.predicting else cell(values, plan.columns.get("completion"))
        return [from_messages(prompt, None, plan.format.expected, completion=answer)]
    return [_sequence(task, _prompt(plan, values, empty=True), _target(plan, values, "completion"))]


def _question_answer(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    question, answer = _prompt(plan, values), _target(plan, values, "answer")
    if task == SEQ2SEQ or plan.template:
        return [_sequence(task, question, answer)]
    return [Conversation.single(question, answer, plain=(f"{question}\n", answer))]  # else the two would run together


def _alpaca(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    instruction = _prompt(plan, values)
    nested = cell(values, plan.columns.get("instances"))
    if nested is None:
        return [_alpaca_one(plan, instruction, values, plan.columns, task)]
    if not isinstance(nested, list) or not nested or not all(isinstance(item, dict) for item in nested):
        raise RowError("instances is not a list of objects", plan.format.expected)
    inner = {"input": "input", "output": "output"}
    return [_alpaca_one(plan, instruction, item, inner, task) for item in nested]


def _alpaca_one(
    plan: Plan, instruction: str, values: Mapping[str, Any], columns: Mapping[str, str], task: TaskName
) -> Example:
    more = cell(values, columns.get("input"))
    if more is not None and not isinstance(more, str):
        raise RowError(f"input holds a {type(more).__name__}, not text", plan.format.expected)
    output = None
    if not plan.predicting:
        output = text_of(values, columns.get("output"), "output", plan.format.expected)
    if task == SEQ2SEQ:
        return InputTarget(f"{instruction}\n{more}" if more and more.strip() else instruction, output)
    system = cell(values, columns.get("system"))
    return Conversation.alpaca(instruction, more or "", output, system if isinstance(system, str) else "")


def _messages(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    turns = cell(values, plan.columns["messages"])
    tools = cell(values, plan.columns.get("tools"))
    return [from_messages(turns, tools, plan.format.expected, predicting=plan.predicting)]


def _sharegpt(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    turns = cell(values, plan.columns["conversations"])
    system, tools = cell(values, plan.columns.get("system")), cell(values, plan.columns.get("tools"))
    return [from_sharegpt(turns, system, tools, plan.format.expected, predicting=plan.predicting)]


def _input_target(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    return [InputTarget(_prompt(plan, values), _target(plan, values, "target"))]


def _classification(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    text = _prompt(plan, values)
    pair = None
    if "text_pair" in plan.columns:
        pair = text_of(values, plan.columns["text_pair"], "text_pair", plan.format.expected)
    if plan.predicting:
        return [Labelled(text, pair, None)]
    return [Labelled(text, pair, _label(plan, values, "label"))]


def _label(plan: Plan, values: Mapping[str, Any], name: str) -> Any:
    column = plan.columns.get(name)
    value = cell(values, column)
    if column is None or column not in values:
        raise RowError(f"no column {column or name!r}; the row has {', '.join(values)}", plan.format.expected)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError(f"the label in {column!r} is {'null' if value is None else 'NaN'}", plan.format.expected)
    if isinstance(value, str) and not value.strip():
        raise RowError(f"the label in {column!r} is empty", plan.format.expected)
    if isinstance(value, dict):
        raise RowError(f"the label in {column!r} is an object", plan.format.expected)
    return value


def _tokens_tags(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    words = cell(values, plan.columns["tokens"])
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise RowError(f"{plan.columns['tokens']!r} is not a list of words", plan.format.expected)
    if plan.predicting:
        return [Tagged(words, None)]
    tags = _label(plan, values, "tags")
    if not isinstance(tags, list) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, list) else "no list of"
        raise RowError(f"{len(words)} tokens but {count} tags", "one tag for each token")
    for tag in tags:
        if isinstance(tag, bool) or not isinstance(tag, str | int) or tag == "":
            raise RowError(f"the tag {tag!r} is neither a name nor a number", plan.format.expected)
    return [Tagged(words, tags)]


def _pretokenized(plan: Plan, values: Mapping[str, Any], task: TaskName) -> list[Example]:
    ids = cell(values, plan.columns["input_ids"])
    if not _is_ints(ids) or not ids:
        raise RowError("input_ids is not a list of token numbers", plan.format.expected)
    if min(ids) < 0:
        raise RowError(f"input_ids holds {min(ids)}", "token numbers from 0")
    if "labels" not in plan.columns or plan.predicting:
        if task in (CLASSIFICATION, TOKENS, SEQ2SEQ) and not plan.predicting:
            raise RowError("no column 'labels'", plan.format.expected)
        return [Tokens(list(ids), None)]
    labels = _label(plan, values, "labels")
    if task == CLASSIFICATION:
        return [Tokens(list(ids), labels)]
    if not _is_ints(labels) or (task != SEQ2SEQ and len(labels) != len(ids)):
        raise RowError("labels is not a list of numbers as long as input_ids", plan.format.expected)
    if task == CAUSAL and any(label not in (IGNORED, token) for label, token in zip(labels, ids, strict=True)):
        raise RowError("a label is neither -100 nor the token itself", "labels equal to input_ids, or -100")
    return [Tokens(list(ids), list(labels))]


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


_BUILDERS: dict[str, Callable[[Plan, Mapping[str, Any], TaskName], list[Example]]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "question_answer": _question_answer,
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "input_target": _input_target,
    "classification": _classification,
    "folders": _classification,
    "tokens_tags": _tokens_tags,
    "pretokenized": _pretokenized,
}
