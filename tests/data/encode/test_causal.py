"""Rows of causal language models: which tokens are learnt, where BOS and EOS stand, what the length limit does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.encode.overflow import best_window
from peftcli.data.prepare import prepare_for_prediction
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec
from tests.data.tools import chat_tokenizer, learnt, ready, whole, write_jsonl

PAIR = {"prompt": "What is two plus two? ", "completion": "The answer is four."}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def test_prompt_and_completion_are_tokenised_as_one_text(tokenizer: Any, tmp_path: Path) -> None:
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [PAIR]))
    row = data.train[0]
    assert whole(row, tokenizer) == "What is two plus two? The answer is four.</s>"
    assert learnt(row, tokenizer) == "The answer is four.</s>" or learnt(row, tokenizer) == " The answer is four.</s>"
    joint = tokenizer.encode(PAIR["prompt"] + PAIR["completion"], add_special_tokens=False)
    assert row.input_ids.tolist() == [*joint, tokenizer.eos_token_id]
    assert (row.source, row.row) == (str(tmp_path / "a.jsonl"), 1)
    assert data.report.supervised_tokens == int((np.asarray(row.labels) >= 0).sum())


def test_the_first_token_is_never_learnt(tokenizer: Any, tmp_path: Path) -> None:
    row = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [{"text": "Hello there"}])).train[0]
    assert np.asarray(row.labels)[0] == -100
    assert (np.asarray(row.labels)[1:] == row.input_ids[1:]).all()


@pytest.mark.parametrize("text", ["Hello", "<s>Hello", "Hello</s>", "<s>Hello</s>"])
def test_bos_and_eos_stand_once(tmp_path: Path, text: str) -> None:
    tokenizer = chat_tokenizer(add_bos=True)
    row = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [{"text": text}])).train[0]
    assert whole(row, tokenizer) == "<s>Hello</s>"


@pytest.mark.parametrize(
    ("template", "start"),
    [("llama3", "<s><|start_header_id|>"), ("chatml", "<s><|im_start|>"), ("gemma", "<s><start_of_turn>")],
)
def test_a_tokenizer_that_adds_bos_does_not_add_it_twice(tmp_path: Path, template: str, start: str) -> None:
    tokenizer = chat_tokenizer(add_bos=True)
    row = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}]), chat_template=template).train[0]
    text = whole(row, tokenizer)
    assert text.startswith(start) and text.count("<s>") == 1


def test_the_tokenizers_own_template_is_taken_at_its_word(tmp_path: Path) -> None:
    from peftcli.data.chat.named_templates import choose_template

    chatml = choose_template("chatml", None)
    assert chatml is not None
    tokenizer = chat_tokenizer(add_bos=True, chat_template=chatml.text)
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}])
    data = ready(tokenizer, path)
    assert data.template == "tokenizer" and data.report.template == "tokenizer"
    expected = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    assert data.train[0].input_ids.tolist() == expected
    assert learnt(data.train[0], tokenizer) == "Hello.<|im_end|>"
    assert set(data.stop_token_ids) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    plain = ready(tokenizer, path, chat_template="none")
    assert plain.template is None and whole(plain.train[0], tokenizer) == "<s>User: Hi\nAssistant: Hello.</s>"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello."},
        {"question": "Hi", "answer": "Hello."},
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"messages": CHAT},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"instruction": "Hi", "instances": [{"input": "", "output": "Hello."}]},
    ],
    ids=["prompt_completion", "question_answer", "alpaca", "sharegpt", "messages", "conversational", "nested"],
)
def test_every_format_with_an_answer_uses_the_chat_template(tokenizer: Any, tmp_path: Path, row: Any) -> None:
    made = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [row]), chat_template="chatml").train[0]
    assert whole(made, tokenizer) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    assert learnt(made, tokenizer) == "Hello.<|im_end|>"


def test_plain_forms(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": "Two plus two?", "answer": "four"}]
    made = ready(tokenizer, write_jsonl(tmp_path / "q.jsonl", rows)).train[0]
    assert whole(made, tokenizer) == "Two plus two?\nfour</s>" and learnt(made, tokenizer) == "four</s>"
    made = ready(tokenizer, tmp_path / "q.jsonl", template="Q: {question} A:").train[0]
    assert whole(made, tokenizer) == "Q: Two plus two? A:four</s>" and learnt(made, tokenizer) == "four</s>"
    made = ready(tokenizer, tmp_path / "q.jsonl", train_on="all").train[0]
    assert learnt(made, tokenizer) == whole(made, tokenizer)[1:]


def test_nested_instances_are_rows_of_one_row(tokenizer: Any, tmp_path: Path) -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "2 2", "output": "4"}]}
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [row, row]))
    assert len(data.train) == 4 and [made.row for made in data.train] == [1, 1, 2, 2]
    assert data.report.counts.rows == 2 and data.report.counts.kept == 2


def test_a_token_that_spans_the_border_is_learnt(tmp_path: Path) -> None:
    """The prompt alone ends in other tokens than the joint text has there: what differs is learnt."""
    tokenizer = chat_tokenizer()
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "The answ", "completion": "er is four."}])
    data = ready(tokenizer, path)
    row = data.train[0]
    alone = tokenizer.encode("The answ", add_special_tokens=False)
    shared = 0
    while shared < len(alone) and alone[shared] == row.input_ids[shared]:
        shared += 1
    assert shared < len(alone), "the example should have a token across the border"
    assert (np.asarray(row.labels)[:shared] == -100).all() and (np.asarray(row.labels)[shared:] >= 0).all()
    assert data.report.checks["prefixes_disagreed"] == 1
    assert data.report.notes == [
        "in 1 of 1 prompts that were checked, the last token merges with the beginning of the answer: "
        "end prompts without a space, and start completions with one"
    ]
    heeded = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "The answer", "completion": " is four."}])
    assert ready(tokenizer, heeded).report.notes == []


def test_answers_in_many_scripts_are_learnt_to_the_last_byte(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{a} ", "completion": b} for a, b in [("é", "☃😀"), ("😀", "ж"), ("a\u0301", "漢字"), ("x", "🏳️‍🌈")]
    ]
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", rows))
    for row, made in zip(rows, data.train, strict=True):
        assert whole(made, tokenizer) == row["prompt"] + row["completion"] + "</s>"
        assert learnt(made, tokenizer).strip() == row["completion"] + "</s>"


def test_tokens_that_came_as_tokens(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"input_ids": [20, 21, 22]}, {"input_ids": [20, 21, 22], "labels": [-100, -100, 22]}]
    one = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", rows[:1])).train[0]
    assert np.asarray(one.labels).tolist() == [-100, 21, 22]
    two = ready(tokenizer, write_jsonl(tmp_path / "b.jsonl", rows[1:])).train[0]
    assert np.asarray(two.labels).tolist() == [-100, -100, 22]
    bad = write_jsonl(tmp_path / "c.jsonl", [{"input_ids": [20, 21], "labels": [1, 2]}])
    with pytest.raises(UserError, match="neither -100 nor the token itself"):
        ready(tokenizer, bad)
    for number, message in ((-1, "input_ids holds -1"), (10**12, "but there are")):
        bad = write_jsonl(tmp_path / "d.jsonl", [{"input_ids": [20, number]}])
        with pytest.raises(UserError, match=message):
            ready(tokenizer, bad)


class TestOverflow:
    rows = ({"prompt": "What is two plus two? " * 20, "completion": "The answer is four."}, PAIR)

    def test_truncation_cuts_the_prompt_and_keeps_what_is_learnt(self, tokenizer: Any, tmp_path: Path) -> None:
        data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", self.rows), max_length=24)
        assert len(data.train[0].input_ids) == 24
        assert learnt(data.train[0], tokenizer).strip() == "The answer is four.</s>"
        assert (data.report.counts.kept, data.report.counts.truncated) == (2, 1)
        assert "1 truncated" in data.report.counts.line()

    def test_bos_stays_in_front(self, tmp_path: Path) -> None:
        tokenizer = chat_tokenizer(add_bos=True)
        data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", self.rows), max_length=24)
        assert whole(data.train[0], tokenizer).startswith("<s>") and len(data.train[0].input_ids) == 24

    def test_an_answer_that_does_not_fit_keeps_some_prompt(self, tokenizer: Any, tmp_path: Path) -> None:
        long = {"prompt": "What is two plus two? ", "completion": "The answer is four. " * 30}
        row = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [long]), max_length=16).train[0]
        labels = np.asarray(row.labels)
        assert len(labels) == 16 and (labels[:4] == -100).all() and (labels[4:] >= 0).all()

    def test_a_document_loses_its_end(self, tokenizer: Any, tmp_path: Path) -> None:
        text = "Hello there, how are you today? " * 20
        row = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [{"text": text}]), max_length=16).train[0]
        assert text.startswith(whole(row, tokenizer))

    def test_drop(self, tokenizer: Any, tmp_path: Path) -> None:
        data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", self.rows), max_length=24, overflow="drop")
        assert len(data.train) == 1 and data.train[0].row == 2
        assert (data.report.counts.rows, data.report.counts.kept, data.report.counts.dropped) == (2, 1, 1)

    def test_error_names_every_row(self, tokenizer: Any, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", self.rows)
        with pytest.raises(UserError, match=r"a\.jsonl:1: \d+ tokens, more than max_length 24"):
            ready(tokenizer, path, max_length=24, overflow="error", on_error="skip")

    def test_split_keeps_every_learnt_token_in_some_piece(self, tokenizer: Any, tmp_path: Path) -> None:
        text = "Hello there, how are you today? " * 20
        path = write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": "Hello"}])
        data = ready(tokenizer, path, max_length=16, overflow="split")
        pieces = [row for row in data.train if row.row == 1]
        assert len(pieces) > 5 and all(len(row.input_ids) <= 16 for row in pieces)
        assert "".join(whole(row, tokenizer) for row in pieces) == text + "</s>"
        assert data.report.counts.rows == 2 and data.report.counts.kept == 2

    def test_pieces_of_a_row_stay_on_one_side_of_the_split(self, tokenizer: Any, tmp_path: Path) -> None:
        rows = [{"text": f"Hello {number} " * 20} for number in range(10)]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        data = ready(tokenizer, path, max_length=16, overflow="split", val_set_size=0.3)
        mine = {row.row for row in data.train}
        theirs = {row.row for row in data.validation[""]}
        assert len(theirs) == 3 and not mine & theirs


@pytest.mark.parametrize(
    ("mask", "length", "start"),
    [
        ("000000111", 4, 5),  # all learnt tokens, with context in front
        ("000111111", 4, 2),  # they do not fit: a quarter stays for context
        ("111111111", 4, 0),  # a document keeps its beginning
        ("011000000011111", 6, 9),  # the window with the most learnt tokens
        ("110000000", 4, 0),
    ],
)
def test_best_window(mask: str, length: int, start: int) -> None:
    assert best_window(np.array([char == "1" for char in mask]), length) == start


def test_too_many_masked_rows_are_refused_with_the_reason(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"messages": CHAT[:1]}] * 3 + [{"messages": CHAT}] * 7
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    message = r"3 of 10 rows have no token to train on \(3 rows: no answer to train on"
    with pytest.raises(UserError, match=message) as caught:
        ready(tokenizer, path)
    assert "max_fully_masked" in str(caught.value)
    data = ready(tokenizer, path, max_fully_masked=0.3)
    assert (data.report.counts.kept, data.report.counts.fully_masked) == (7, 3)
    with pytest.raises(UserError, match="no token to train on"):
        ready(tokenizer, write_jsonl(tmp_path / "b.jsonl", rows[:3]), max_fully_masked=1.0)


def test_all_rows_dropped_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row is left .*longer than max_length"):
        ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [PAIR]), max_length=3, overflow="drop")


def test_prediction_rows_are_prompts_in_order(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": "Two?"}, {"question": "Three? " * 30}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    plain = prepare_for_prediction(str(path), DataSpec(path="unused.jsonl"), "causal_lm", tokenizer)
    assert [whole(row, tokenizer) for row in plain] == ["Two?\n", "Three? " * 30 + "\n"]
    assert all(row.labels is None for row in plain)
    spec = DataSpec(path="unused.jsonl", chat_template="chatml", max_length=20)
    chat = prepare_for_prediction(str(path), spec, "causal_lm", tokenizer)
    assert whole(chat[0], tokenizer) == "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    assert len(chat[1].input_ids) == 20 and whole(chat[1], tokenizer).endswith("<|im_end|>\n<|im_start|>assistant\n")
    trained = ready(
        tokenizer, write_jsonl(tmp_path / "t.jsonl", [{**rows[0], "answer": "two"}]), chat_template="chatml"
    )
    first = np.flatnonzero(np.asarray(trained.train[0].labels) >= 0)[0]
    assert trained.train[0].input_ids[:first].tolist() == chat[0].input_ids.tolist()
