"""Validation sets, places in messages, broken rows, long rows, and what the report says of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare
from peftcli.data.rows.row_set import StoredRows
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSpec
from tests.data.tools import chat_tokenizer, learnt, numbered, numbers, ready, whole, write_jsonl
from tests.tiny import tiny_tokenizer

CLASSIFY = "sequence_classification"


def test_validation_of_its_own_with_its_own_columns(tokenizer: Any, tmp_path: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 5)
    other = write_jsonl(tmp_path / "v.jsonl", [{"q": "Two? ", "a": "two"}])
    data = ready(
        tokenizer,
        train,
        val_set_size=0.1,
        validation={"path": str(other), "columns": {"prompt": "q", "completion": "a"}},
    )
    assert len(data.train) == 5 and whole(data.validation[""][0], tokenizer) == "Two? two</s>"
    assert data.report.sets["validation"].rows == 1 and data.report.counts.rows == 6


def test_validation_takes_the_formats_of_data_by_default(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"q": "Two? ", "a": "two", "text": "x"}]
    train, other = write_jsonl(tmp_path / "t.jsonl", rows * 3), write_jsonl(tmp_path / "v.jsonl", rows)
    data = ready(
        tokenizer,
        train,
        format="prompt_completion",
        columns={"prompt": "q", "completion": "a"},
        validation={"path": str(other)},
    )
    assert learnt(data.validation[""][0], tokenizer).strip() == "two</s>"


def test_several_validation_sets_by_name(tokenizer: Any, tmp_path: Path) -> None:
    train = numbered(tmp_path / "t.jsonl", 5)
    easy, hard = numbered(tmp_path / "easy.jsonl", 2), numbered(tmp_path / "hard.jsonl", 3)
    sets = [{"path": str(easy)}, {"path": str(hard), "name": "tough"}]
    data = ready(tokenizer, train, validation=sets)
    assert {name: len(rows) for name, rows in data.validation.items()} == {"easy": 2, "tough": 3}
    with pytest.raises(UserError, match="two validation sets are called 'easy'"):
        ready(tokenizer, train, validation=[{"path": str(easy)}, {"path": str(easy)}])


class Recipe:
    """Stands for a loaded recipe: every key is written in line 7."""

    def problem(self, key: str, message: str, suggestion: str | None = None) -> Problem:
        return Problem(message, "recipe.yaml", 7, key, suggestion)


def test_problems_of_the_recipe_have_its_line(tokenizer: Any, tmp_path: Path) -> None:
    spec = DataSpec(path=str(numbered(tmp_path / "a.jsonl", 5)), columns={"prompt": "nope"})
    with pytest.raises(UserError, match=r"data.columns.prompt: no column 'nope'"):
        prepare(spec, "causal_lm", tokenizer, seed=0, where=Recipe())
    with pytest.raises(UserError, match=r"recipe\.yaml:7: data\.path: there is no file"):
        prepare(DataSpec(path="./nope.jsonl"), "causal_lm", tokenizer, seed=0, where=Recipe())


def test_max_length_is_cut_to_what_the_model_can_place(tokenizer: Any, tmp_path: Path) -> None:
    spec = DataSpec(path=str(write_jsonl(tmp_path / "a.jsonl", [{"text": "Hello " * 50}])), val_set_size=0.0)
    data = prepare(spec, "causal_lm", tokenizer, seed=0, model_max_positions=12)
    assert data.report.longest == 12
    assert data.report.notes == ["max_length 1024 is cut to the model's 12 positions"]


def test_files_without_a_row_are_named(tokenizer: Any, tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"text": "Hello"}\n'), ("b.jsonl", ""), ("c.jsonl", "\n\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    data = prepare(DataSpec(path=f"{tmp_path}/*.jsonl", val_set_size=0.0), "causal_lm", tokenizer, seed=0)
    assert len(data.train) == 1
    assert f"2 of 3 files hold no rows: {tmp_path}/b.jsonl, {tmp_path}/c.jsonl" in data.report.notes


BROKEN = [
    ('{"prompt": "a ", "completion": ', "broken JSON"),
    ('{"prompt": "a "}', "no column 'completion'; the row has prompt"),
    ('{"prompt": "a ", "completion": null}', "the column 'completion' is null"),
    ('{"prompt": "a ", "completion": NaN}', "the column 'completion' is NaN"),
    ('{"prompt": "a ", "completion": -Infinity}', "the column 'completion' is an infinite number, not text"),
    ('{"prompt": "a ", "completion": "  "}', "the column 'completion' is empty"),
    ('{"prompt": "a ", "completion": ["b"]}', "the column 'completion' holds a list, not text"),
    ('{"question": "a", "answer": "b"}', "no column 'prompt'"),
    ("7", "the line holds a number"),
]


class TestBrokenRows:
    def write(self, path: Path, lines: list[str]) -> Path:
        good = json.dumps({"prompt": "Hi ", "completion": "Hello."})
        path.write_text("\n".join([good, *lines, good]) + "\n", encoding="utf-8")
        return path

    @pytest.mark.parametrize(("line", "message"), BROKEN)
    def test_each_is_named_with_file_line_row_and_expectation(
        self, tokenizer: Any, tmp_path: Path, line: str, message: str
    ) -> None:
        path = self.write(tmp_path / "a.jsonl", [line])
        with pytest.raises(UserError) as caught:
            ready(tokenizer, path)
        (problem,) = caught.value.problems
        assert (problem.file, problem.line) == (str(path), 2)
        assert message in problem.message
        assert problem.suggestion is not None
        assert "row: " in problem.suggestion and "expected: " in problem.suggestion
        assert "on_error: skip" in problem.suggestion

    def test_all_are_shown_at_once(self, tokenizer: Any, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.jsonl", [line for line, _ in BROKEN])
        with pytest.raises(UserError) as caught:
            ready(tokenizer, path)
        assert sorted(problem.line or 0 for problem in caught.value.problems) == list(range(2, 2 + len(BROKEN)))

    def test_skipping_lists_them(self, tokenizer: Any, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.jsonl", [line for line, _ in BROKEN])
        data = ready(tokenizer, path, on_error="skip")
        assert numbers(data.train) == [1, 11]
        assert data.report.counts.rows == 11 and data.report.counts.skipped == 9
        assert sorted(bad["row"] for bad in data.report.skipped) == list(range(2, 2 + len(BROKEN)))
        assert all(bad["message"] and bad["expected"] for bad in data.report.skipped)
        assert "9 skipped" in data.report.counts.line()

    def test_nothing_left_after_skipping(self, tokenizer: Any, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text("{\n{\n", encoding="utf-8")
        with pytest.raises(UserError, match="all 2 rows are broken"):
            ready(tokenizer, path, on_error="skip")

    def test_a_first_row_unlike_the_others_does_not_decide_the_format(self, tokenizer: Any, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.jsonl", ['{"messages": [{"role": "user", "content": "x"}]}'])
        with pytest.raises(UserError):
            ready(tokenizer, path)

    @pytest.mark.parametrize(
        ("turns", "message"),
        [
            ([{"role": "robot", "content": "x"}], "has the role 'robot'"),
            ([{"role": "user", "content": [{"type": "image"}]}], "holds image, not only text"),
        ],
    )
    def test_bad_messages_have_their_row(self, tokenizer: Any, tmp_path: Path, turns: Any, message: str) -> None:
        good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        path = write_jsonl(tmp_path / "a.jsonl", [good, {"messages": turns}, good])
        with pytest.raises(UserError, match=rf"a\.jsonl:2: message 1 {message}"):
            ready(tokenizer, path, chat_template="chatml")
        assert ready(tokenizer, path, chat_template="chatml", on_error="skip").report.counts.skipped == 1

    def test_a_template_that_refuses_a_row_names_it(self, tokenizer: Any, tmp_path: Path) -> None:
        good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        odd = [good[0], {"role": "tool", "content": "x"}, good[1]]
        path = write_jsonl(tmp_path / "a.jsonl", [{"messages": good}, {"messages": odd}])
        with pytest.raises(UserError, match=r"a\.jsonl:2: the chat template gemma refuses roles user tool assistant"):
            ready(tokenizer, path, chat_template="gemma")

    @pytest.mark.parametrize("label", [None, float("nan"), float("inf"), "", " ", {"a": 1}])
    def test_bad_labels_have_their_row(self, tmp_path: Path, label: Any) -> None:
        rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": label}]
        with pytest.raises(UserError, match=r"a\.jsonl:3: the label"):
            ready(tiny_tokenizer(cls=True), write_jsonl(tmp_path / "a.jsonl", rows), CLASSIFY)


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", ""), ("a.csv", "text,label\n"), ("a.json", "[]"), ("a.json", "")]
)
def test_an_empty_file_says_so(tokenizer: Any, tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="there are no rows"):
        ready(tokenizer, path)


def test_a_ten_megabyte_row_is_cut_like_any_other(tokenizer: Any, tmp_path: Path) -> None:
    text = "Hello there. " * 800_000
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": "Hello"}])
    data = ready(tokenizer, path, max_length=32)
    assert data.report.counts.truncated == 1
    assert data.train[0].input_ids.tolist() == tokenizer.encode(text[:1000], add_special_tokens=False)[:32]
    labelled = write_jsonl(tmp_path / "b.jsonl", [{"text": text, "label": n} for n in range(2)])
    row = ready(tokenizer, labelled, CLASSIFY, max_length=32).train[0]
    assert row.input_ids.tolist() == data.train[0].input_ids.tolist()


def test_long_tokens_are_not_mistaken_for_a_short_text(tmp_path: Path) -> None:
    """One token may stand for hundreds of characters: then more of the text is needed to fill the row."""
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["=" * 500])
    text = ("=" * 500) * 30 + " Hello"
    whole_ids = tokenizer.encode(text, add_special_tokens=False)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "label": n} for n in range(2)])
    assert ready(tokenizer, path, max_length=20).train[0].input_ids.tolist() == whole_ids[:20]
    assert ready(tokenizer, path, CLASSIFY, max_length=20).train[0].input_ids.tolist() == whole_ids[:20]


def test_rows_are_mapped_and_pickle_as_a_name(tokenizer: Any, tmp_path: Path) -> None:
    data = ready(tokenizer, numbered(tmp_path / "a.jsonl", 30))
    assert isinstance(data.train, StoredRows)
    assert isinstance(data.train.store.ids.base, np.memmap)
    again = pickle.loads(pickle.dumps(data.train))
    assert len(pickle.dumps(data.train)) < 2000 + 8 * len(data.train)
    assert np.array_equal(again[7].input_ids, data.train[7].input_ids) and again[7].source == data.train[7].source
    assert data.train.lengths.tolist() == [len(row.input_ids) for row in data.train]
    assert data.report.tokens == int(data.train.lengths.sum())


@pytest.mark.parametrize(
    ("overflow", "words"), [("truncate", "truncated to max_length"), ("split", "split by max_length")]
)
def test_the_header_says_what_became_of_long_rows(tokenizer: Any, tmp_path: Path, overflow: str, words: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "Hello there. " * 40}, {"text": "Hello"}])
    report = ready(tokenizer, path, max_length=32, overflow=overflow).report
    assert report.summary().startswith(f"2 rows, 1 {words}") and report.split == (overflow == "split")


def test_the_report_is_plain_data(tokenizer: Any, tmp_path: Path) -> None:
    report = ready(tokenizer, numbered(tmp_path / "a.jsonl", 3)).report
    assert json.loads(json.dumps(report.as_dict()))["counts"]["rows"] == 3
    assert report.summary() == "3 rows"
