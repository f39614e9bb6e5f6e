"""A row is used wholly, or what is not used is named with counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftcli.data.prepared_data import PreparedData
from peftcli.errors import UserError
from tests.data.tools import chat_tokenizer, learnt, ready, whole, write_jsonl
from tests.tiny import tiny_tokenizer

USER, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good"}


def chat(path: Path, *rows: Any, template: str = "chatml", **data: Any) -> tuple[PreparedData, str]:
    tokenizer = chat_tokenizer()
    made = ready(tokenizer, write_jsonl(path / "a.jsonl", rows), chat_template=template, **data)
    return made, whole(made.train[0], tokenizer)


def jinja(path: Path, text: str) -> str:
    (path / "t.jinja").write_text(text, encoding="utf-8")
    return str(path / "t.jinja")


def test_columns_and_keys_that_no_text_shows_are_counted(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "source": "", "messages": [{**USER, "name": "Ada", "loves": "tea"}, ANSWER]},
        {"id": 8, "messages": [USER, {**ANSWER, "train": False}, USER, ANSWER]},
    ]
    made, text = chat(tmp_path, *rows)
    expected = {"column id": 2, "messages[].name": 1, "messages[].loves": 1, "messages that a loss flag masks": 1}
    assert made.report.unused == expected and "Ada" not in text
    (note,) = [note for note in made.report.notes if note.startswith("not used: ")]
    assert "column id (2 rows)" in note
    shown = jinja(tmp_path, "{% for m in messages %}{{ m.role }} {{ m.name }}: {{ m.content }}<|im_end|>{% endfor %}")
    made, text = chat(tmp_path, rows[0], template=shown)
    assert "Ada" in text and made.report.unused == {"column id": 1, "messages[].loves": 1}


def test_fields_beside_the_messages_are_in_the_text(tmp_path: Path) -> None:
    for row in (
        {"system": "BRIEF", "messages": [USER, ANSWER]},
        {"system": "BRIEF", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good"}]},
        {"system": "BRIEF", "prompt": "hello", "completion": "good"},
        {"system": "BRIEF", "instruction": "hello", "output": "good"},
    ):
        made, text = chat(tmp_path, row)
        assert "<|im_start|>system\nBRIEF<|im_end|>" in text and not made.report.unused
    made, _ = chat(tmp_path, {"system": "BRIEF", "messages": [{"role": "system", "content": "OTHER"}, USER, ANSWER]})
    assert any(name.startswith("system") for name in made.report.unused)


def test_earlier_rounds_of_an_instruction_are_in_the_text(tmp_path: Path) -> None:
    row = {"instruction": "and now?", "output": "yes", "history": [["FIRST", "ONE"]], "context": "MORE"}
    for template in ("chatml", "none"):
        made, text = chat(tmp_path, row, template=template)
        assert text.index("FIRST") < text.index("ONE") < text.index("and now?") < text.index("MORE")
        assert not made.report.unused
    with pytest.raises(UserError, match="history is not a list"):
        chat(tmp_path, {**row, "history": ["FIRST"]})
    data = ready(tiny_tokenizer(), write_jsonl(tmp_path / "b.jsonl", [{**row, "system": "S"}]), "seq2seq_lm")
    assert "".join(whole(data.train[0], tiny_tokenizer()).split()).startswith("SFIRSTONEandnow?MORE")


@pytest.mark.parametrize("role", ["tool_call", "function_call", "Tool-Call"])
@pytest.mark.parametrize("answer", ["tool_response", "observation", "tool", "function"])
def test_tool_turns_of_other_tools(tmp_path: Path, role: str, answer: str) -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    turns = [("user", "weather?"), (role, call), (answer, "SUNNY"), ("model", "nice")]
    messages = {"messages": [{"role": who, "content": text} for who, text in turns]}
    shares = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    for row in (messages, shares):
        made, text = chat(tmp_path, row)
        assert f"assistant\n{call}<|im_end|>" in text and "tool\nSUNNY<|im_end|>" in text
        assert any("shows no tool calls" in note for note in made.report.notes) and not made.report.unused
        _, text = chat(tmp_path, row, template="qwen2.5")
        assert "<tool_call>" in text and '"city": "Rome"' in text


@pytest.mark.parametrize(
    "flag", [{"train": False}, {"weight": 0}, {"loss": "false"}, {"training": 0.0}, {"mask": True}]
)
def test_loss_flags_of_other_tools(tmp_path: Path, flag: dict[str, Any]) -> None:
    made, _ = chat(tmp_path, {"messages": [USER, {**ANSWER, **flag}, USER, {"role": "assistant", "content": "fine"}]})
    assert learnt(made.train[0], chat_tokenizer()) == "fine<|im_end|>"


def test_what_a_template_drops_is_said_and_a_dropped_answer_refused(tmp_path: Path) -> None:
    body = "{% for m in messages if m.role != 'ROLE' %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    system = {"role": "system", "content": "BRIEF"}
    made, _ = chat(
        tmp_path, {"messages": [system, USER, ANSWER]}, template=jinja(tmp_path, body.replace("ROLE", "system"))
    )
    assert made.report.unused == {"system messages": 1}
    with pytest.raises(UserError, match=r"leaves out the answer in message 2|cannot be found"):
        chat(tmp_path, {"messages": [USER, ANSWER]}, template=jinja(tmp_path, body.replace("ROLE", "assistant")))


def test_a_refused_system_turn_has_a_remedy(tmp_path: Path) -> None:
    text = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    with pytest.raises(UserError, match=r"(?s)t\.jinja refuses.*data\.chat_template: gemma"):
        chat(tmp_path, {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}, template=jinja(tmp_path, text))


@pytest.mark.parametrize("text", ["{{ 1 // 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ {}[0].a }}"])
def test_a_template_that_fails_is_an_error_of_the_row(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="refuses"):
        chat(tmp_path, {"messages": [USER, ANSWER]}, template=jinja(tmp_path, text))


def test_arguments_reach_the_template_and_go_out_with_it(tmp_path: Path) -> None:
    body = "{% for m in messages %}{{ m.role }}{{ mood }}: {{ m.content }}<|im_end|>{% endfor %}"
    template, row = jinja(tmp_path, body), {"messages": [USER, ANSWER]}
    for mood in ("calm", 'so "so"', None, True, {"a": [1, 2.5, "x"]}):
        made, text = chat(tmp_path, row, template=template, chat_template_kwargs={"mood": mood})
        assert str(mood) in text and made.chat_template is not None and "set mood" in made.chat_template
    for arguments, key in (({"temper": 1}, "temper"), ({"messages": []}, "messages")):
        with pytest.raises(UserError, match=rf"data.chat_template_kwargs.{key}"):
            chat(tmp_path, row, template=template, chat_template_kwargs=arguments)
    with pytest.raises(UserError, match="plain text"):
        chat(tmp_path, row, template="none", chat_template_kwargs={"mood": 1})


def test_an_end_of_turn_that_is_no_token_is_said(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER]}
    assert not chat(tmp_path, row)[0].report.notes
    made = ready(tiny_tokenizer(), write_jsonl(tmp_path / "a.jsonl", [row]), chat_template="chatml")
    assert any("'<|im_end|>', which is no token" in note for note in made.report.notes)


def test_dotted_paths_reach_into_cells(tmp_path: Path) -> None:
    rows = [
        {"translation": {"en": "hello", "fr": "salut"}, "answers": {"text": ["ONE", "TWO"]}, "g": {"x": 1}},
        {"translation": '{"en": "hi", "fr": "yo"}', "answers": {"text": ["ONE", "TWO"]}, "g": {"x": 1}},
    ]
    path, tokenizer = write_jsonl(tmp_path / "a.jsonl", rows), chat_tokenizer()
    columns = {"prompt": "translation.en", "completion": "answers.text.0"}
    made = ready(tokenizer, path, columns=columns, format="prompt_completion")
    assert [whole(row, tokenizer) for row in made.train] == ["helloONE</s>", "hiONE</s>"]
    assert made.report.unused == {"column g": 2}
    made = ready(tokenizer, path, template="{translation.fr}!", format="text")
    assert [whole(row, tokenizer) for row in made.train] == ["salut!</s>", "yo!</s>"]
    with pytest.raises(UserError, match=r"translation\.en"):
        ready(tokenizer, path, columns={"prompt": "translation.de", "completion": "translation.fr"})
    with pytest.raises(UserError, match=r"translation\.en, translation\.fr"):
        ready(tokenizer, write_jsonl(tmp_path / "b.jsonl", [{"translation": rows[0]["translation"]}]), "seq2seq_lm")


def test_a_column_of_json_text_is_read(tmp_path: Path) -> None:
    import json

    for text in (json.dumps([USER, ANSWER]), str([USER, ANSWER])):
        _, shown = chat(tmp_path, {"messages": text})
        assert "hello<|im_end|>" in shown
    made = ready(
        tiny_tokenizer(cls=True),
        write_jsonl(tmp_path / "t.jsonl", [{"tokens": "['Ada', 'wrote']", "tags": '["B", "O"]'}]),
        "token_classification",
    )
    assert made.labels is not None and made.labels.names == ("B", "O")


def test_seq2seq_refuses_messages(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": [USER], "completion": [ANSWER]}])
    with pytest.raises(UserError, match=r"(?s)a\.jsonl:1: prompt is a list of messages.*\"prompt\": \"\.\.\.\""):
        ready(tiny_tokenizer(), path, "seq2seq_lm")
