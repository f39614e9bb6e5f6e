"""What `peft inspect` finds: exactly the answer's tokens, lengths, equal rows, label balance."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.console.inspect_html import page
from peftcli.console.inspect_view import render
from peftcli.data.inspection import histogram, inspect_data, token_texts
from tests.data.tools import chat_tokenizer, ready, write_jsonl
from tests.tiny import tiny_tokenizer

QUESTIONS = [{"question": f"What is {n} plus two?", "answer": f"It is {n + 2}.\n#### {n + 2}"} for n in range(10)]


@pytest.mark.parametrize("template", ["none", "chatml"])
def test_exactly_the_answers_tokens_are_supervised(tokenizer: Any, tmp_path: Path, template: str) -> None:
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", QUESTIONS), chat_template=template)
    found = inspect_data(data, tokenizer, "causal_lm", rows=10, max_length=1024)
    assert len(found.examples) == 10
    end = "</s>" if template == "none" else "<|im_end|>"
    for row, example in zip(QUESTIONS, found.examples, strict=True):
        assert "".join(token.text for token in example.tokens if token.supervised) == row["answer"] + end
        assert "".join(token.text for token in example.tokens) == tokenizer.decode(
            data.train[example.row - 1].input_ids
        )
        assert example.source == str(tmp_path / "a.jsonl")
        assert [token.special for token in example.tokens if token.text == end][-1]
        assert all(token.special for token in example.tokens if token.text.startswith("<|"))
    document = json.loads(json.dumps(found.as_dict()))
    assert set(document["counts"]) >= {"rows", "kept", "truncated", "dropped", "fully_masked"}
    assert set(document["examples"][0]) >= {"source", "row", "tokens"}
    assert set(document["examples"][0]["tokens"][0]) >= {"text", "supervised"}


@pytest.mark.parametrize("text", ["plain words", "é☃ 😀 漢字 🏳️‍🌈", "<|im_start|>user\n x  y\t</s>", ""])
def test_token_texts_join_to_the_decoded_row(text: str) -> None:
    tokenizer = chat_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and "".join(texts) == text


def test_token_texts_of_word_pieces() -> None:
    tokenizer = tiny_tokenizer(cls=True)
    ids = tokenizer("Hello wonderful world")["input_ids"]
    assert "".join(token_texts(ids, tokenizer)) == tokenizer.decode(ids)


def test_equal_rows_are_found(tokenizer: Any, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]])
    other = write_jsonl(tmp_path / "v.jsonl", [QUESTIONS[1], QUESTIONS[5]])
    data = ready(tokenizer, train, validation={"path": str(other)})
    found = inspect_data(data, tokenizer, "causal_lm", rows=1, max_length=1024)
    assert found.duplicates == 1 and found.duplicate_pairs == [(f"{train}:1", f"{train}:3")]
    assert found.overlap == {"": 1} and found.overlap_pairs == [(f"{train}:2", f"{other}:1")]


def test_lengths_make_a_histogram() -> None:
    lengths = np.array([1, 1, 5, 24], np.int32)
    bars = histogram(lengths)
    assert sum(rows for _, _, rows in bars) == 4
    assert bars[0] == (1, 2, 2) and bars[-1][0] <= 24 <= bars[-1][1]
    assert all(after[0] == before[1] + 1 for before, after in pairwise(bars))
    assert histogram(np.empty(0, np.int32)) == [] and histogram(np.array([7, 7], np.int32)) == [(7, 7, 2)]


def test_labels_are_counted_by_set(tmp_path: Path) -> None:
    encoder = tiny_tokenizer(cls=True)
    rows = [{"text": f"t{n}", "label": "ab"[n % 4 == 0]} for n in range(20)]
    data = ready(encoder, write_jsonl(tmp_path / "a.jsonl", rows), "sequence_classification", val_set_size=0.2)
    found = inspect_data(data, encoder, "sequence_classification", rows=2, max_length=64)
    assert found.labels == {"train": {"a": 12, "b": 4}, "validation": {"a": 3, "b": 1}}
    expected = ["b" if example.row % 4 == 1 else "a" for example in found.examples]
    assert [example.label for example in found.examples] == expected and len(expected) == 2
    tags = [{"tokens": ["x", "y"], "tags": ["O", "B"]}, {"tokens": ["z"], "tags": ["O"]}]
    data = ready(encoder, write_jsonl(tmp_path / "b.jsonl", tags), "token_classification")
    found = inspect_data(data, encoder, "token_classification", rows=1, max_length=64)
    assert found.labels == {"train": {"B": 1, "O": 2}}
    assert [token.label for token in found.examples[0].tokens if token.label] == ["O", "B"]


def test_without_colours_learnt_text_stands_in_brackets(tokenizer: Any, tmp_path: Path) -> None:
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [{"question": "[b]?", "answer": "<i>"}]))
    found = inspect_data(data, tokenizer, "causal_lm", rows=1, max_length=64)
    assert render(found.examples[0], colours=False).plain == "[b]?\n⟦<i></s>⟧"
    styled = render(found.examples[0], colours=True)
    assert styled.plain == "[b]?\n<i></s>" and any("green" in str(span.style) for span in styled.spans)


def test_the_page_escapes_what_it_shows(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": "<script>alert(1)</script>", "answer": "no & yes"}]
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", rows))
    text = page(inspect_data(data, tokenizer, "causal_lm", rows=1, max_length=64), title="a <b>")
    assert "<script" not in text and "&amp;" in text and "<title>a &lt;b&gt;</title>" in text
    assert "class='learnt'" in text and "src=" not in text and "href=" not in text


def test_lengths_before_cutting_are_those_of_the_whole_rows(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(cls=True)
    for overflow in ("truncate", "drop"):
        rows = [{"text": "word " * n, "label": "ab"[n % 2]} for n in range(1, 41)]
        data = ready(
            tokenizer,
            write_jsonl(tmp_path / "a.jsonl", rows),
            "sequence_classification",
            max_length=12,
            overflow=overflow,
        )
        found = inspect_data(data, tokenizer, "sequence_classification", rows=1, max_length=12)
        whole = sorted(len(tokenizer(row["text"])["input_ids"]) for row in rows)
        assert found.uncut_quantiles["longest"] == whole[-1] and found.uncut_quantiles["shortest"] == whole[0]
        assert found.length_quantiles["longest"] <= 12
    long = write_jsonl(tmp_path / "b.jsonl", [{"text": "word " * 9000}])
    found = inspect_data(ready(tokenizer, long, max_length=12), tokenizer, "causal_lm", rows=1, max_length=12)
    exact = len(tokenizer("word " * 9000)["input_ids"])
    assert abs(found.uncut_quantiles["longest"] - exact) < 0.1 * exact


def test_preferences_that_contradict_each_other_are_found_and_their_sides_told_apart(
    tokenizer: Any, tmp_path: Path
) -> None:
    """The second row is the first one the other way round, the fourth is the third again; the last is like neither."""
    one = {"prompt": "the cat", "chosen": "sat", "rejected": "ran"}
    same = {"prompt": "the dog", "chosen": "sat", "rejected": "ran"}
    rows = [one, {**one, "chosen": "ran", "rejected": "sat"}, same, same, {**one, "rejected": "slept"}]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    data = ready(tokenizer, file, task="preference")
    found = inspect_data(data, tokenizer, "preference", rows=2, max_length=64)
    assert (found.contradictions, found.duplicates) == (1, 1)
    assert found.contradicting_pairs == [(f"{file}:1", f"{file}:2")]
    for row, example in zip(rows, found.examples, strict=False):
        for side, rejected in (("chosen", False), ("rejected", True)):
            learnt = "".join(token.text for token in example.tokens if token.supervised and token.rejected is rejected)
            assert learnt.removesuffix("</s>").strip() == row[side]
    plain = render(found.examples[0], colours=False).plain
    above, below = plain.split("\n")
    assert "sat" in above[above.index("\u27e6") : above.index("\u27e7")]
    assert "ran" in below[below.index("\u27ea") : below.index("\u27eb")] and "\u27e6" not in below
    styles = {str(span.style) for span in render(found.examples[0], colours=True).spans}
    assert any("green" in style for style in styles) and any("red" in style for style in styles)
    shown = page(found, title="pairs")
    assert "learnt rejected" in shown and "(chosen and rejected swapped): 1" in shown
    texts = ready(tokenizer, write_jsonl(tmp_path / "t.jsonl", QUESTIONS))
    assert inspect_data(texts, tokenizer, "causal_lm", rows=1, max_length=64).contradictions is None


def test_a_cached_row_and_its_evidence_have_the_names_of_this_run(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))
    for name in ("first.jsonl", "second.jsonl"):
        data = ready(tokenizer, write_jsonl(tmp_path / name, QUESTIONS))
        assert data.report.evidence[0].startswith(f"{tmp_path / name}: ")
    assert data.report.cache == "hit"


def test_examples_are_of_different_labels(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": label} for label in "abc" for n in range(6)]
    tokenizer = tiny_tokenizer(cls=True)
    data = ready(tokenizer, write_jsonl(tmp_path / "sorted.jsonl", rows), task="sequence_classification")
    for count, places in ((1, [1]), (3, [1, 7, 13]), (5, [1, 2, 3, 7, 13])):
        found = inspect_data(data, tokenizer, "sequence_classification", rows=count, max_length=64)
        assert [example.row for example in found.examples] == places
