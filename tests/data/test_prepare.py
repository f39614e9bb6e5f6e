"""Splits, several sources, validation sets, broken rows, and what the report says of them."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare
from peftcli.data.rows.row_set import StoredRows
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSource, DataSpec
from tests.data.tools import chat_tokenizer, learnt, ready, whole, write_jsonl
from tests.tiny import tiny_tokenizer

CLASSIFY = "sequence_classification"


def numbered(path: Path, count: int, **more: Any) -> Path:
    return write_jsonl(path, [{"prompt": f"What is {n}? ", "completion": f"It is {n}.", **more} for n in range(count)])


def numbers(rows: Any) -> list[int]:
    return [row.row for row in rows]


def test_a_split_depends_on_the_seed_only(tokenizer: Any, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 40)
    first, again, other = (ready(tokenizer, path, seed=seed, val_set_size=0.25) for seed in (1, 1, 2))
    assert numbers(first.validation[""]) == numbers(again.validation[""]) != numbers(other.validation[""])
    assert len(first.validation[""]) == 10
    assert sorted(numbers(first.train) + numbers(first.validation[""])) == list(range(1, 41))
    assert first.report.train_rows == 30 and first.report.validation_rows == {"": 10}


@pytest.mark.parametrize(("size", "held_out"), [(0.0, 0), (0.1, 2), (3.0, 3), (1.0, 1), (0.01, 1)])
def test_sizes_are_shares_or_whole_numbers(tokenizer: Any, tmp_path: Path, size: float, held_out: int) -> None:
    data = ready(tokenizer, numbered(tmp_path / "a.jsonl", 20), val_set_size=size)
    assert sum(len(rows) for rows in data.validation.values()) == held_out
    assert len(data.train) == 20 - held_out


@pytest.mark.parametrize(("size", "message"), [(20.0, "leave none to train on"), (2.5, "neither a share")])
def test_sizes_that_make_no_sense(tokenizer: Any, tmp_path: Path, size: float, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ready(tokenizer, numbered(tmp_path / "a.jsonl", 20), val_set_size=size)
    assert caught.value.problems[0].key == "data.val_set_size"


def test_single_labels_are_stratified(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": "rare" if n % 10 == 0 else "often"} for n in range(100)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = ready(tiny_tokenizer(cls=True), path, CLASSIFY, val_set_size=0.2)
    held_out = Counter(row.labels for row in data.validation[""])
    assert held_out == {0: 18, 1: 2}
    free = []
    for seed in range(4):
        data = ready(tiny_tokenizer(cls=True), path, CLASSIFY, val_set_size=0.2, seed=seed, stratify=False)
        free.append(Counter(row.labels for row in data.validation[""]))
    assert any(counts != held_out for counts in free)


def test_a_label_with_one_row_stays_in_training(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": "only" if n == 0 else "ab"[n % 2]} for n in range(11)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        for stratify in (True, False):
            data = ready(tiny_tokenizer(cls=True), path, CLASSIFY, val_set_size=0.5, seed=seed, stratify=stratify)
            assert data.labels is not None and data.labels.names == ("a", "b", "only")
            assert all(row.row != 1 for row in data.validation[""])


def test_tags_that_only_one_row_has_stay_in_training(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", f"B-{n}"]} for n in range(4)]
    rows += [{"tokens": ["a"], "tags": ["O"]}] * 4
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = ready(tiny_tokenizer(cls=True), path, "token_classification", val_set_size=0.5)
    assert data.labels is not None and len(data.labels.names) == 5
    assert all(row.row > 4 for row in data.validation[""])


def test_groups_stay_on_one_side(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"a{n} ", "completion": "b", "user": n // 4} for n in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = ready(tokenizer, path, val_set_size=0.3, group_by="user")
    mine = {(row.row - 1) // 4 for row in data.train}
    theirs = {(row.row - 1) // 4 for row in data.validation[""]}
    assert len(theirs) == 3 and not mine & theirs
    with pytest.raises(UserError, match=r"a\.jsonl:1: no column 'usr' to group by"):
        ready(tokenizer, path, val_set_size=0.3, group_by="usr")
    with pytest.raises(UserError, match="cannot be grouped and stratified at once"):
        ready(tokenizer, path, group_by="user", stratify=True)
    with pytest.raises(UserError, match="all rows are in one group"):
        ready(tokenizer, numbered(tmp_path / "b.jsonl", 5, user=1), val_set_size=0.3, group_by="user")


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


def test_sources_of_different_formats_and_weights(tokenizer: Any, tmp_path: Path) -> None:
    one = numbered(tmp_path / "one.jsonl", 10)
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": f"Hello {n}"} for n in range(10)])
    both = [DataSource(path=str(one), weight=2.0), DataSource(path=str(two), weight=0.5)]
    data = prepare(DataSpec(datasets=both, val_set_size=0.0), "causal_lm", tokenizer, seed=0)
    found = Counter(Path(row.source).name for row in data.train)
    assert found == {"one.jsonl": 20, "two.jsonl": 5}
    assert data.report.counts.rows == 20
    assert [line.split(": ")[1] for line in data.report.evidence] == [
        "prompt, completion -> prompt_completion",
        "text -> text",
    ]


def test_max_rows_is_a_subset_by_seed(tokenizer: Any, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 30)
    data = ready(tokenizer, path, max_rows=10, val_set_size=0.2)
    assert len(data.train) == 10 and len(data.validation[""]) == 6
    assert numbers(data.train) == sorted(numbers(data.train)) != numbers(ready(tokenizer, path, max_rows=10).train)


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


BROKEN = [
    ('{"prompt": "a ", "completion": ', "broken JSON"),
    ('{"prompt": "a "}', "no column 'completion'; the row has prompt"),
    ('{"prompt": "a ", "completion": null}', "the column 'completion' is null"),
    ('{"prompt": "a ", "completion": NaN}', "the column 'completion' is NaN"),
    ('{"prompt": "a ", "completion": "  "}', "the column 'completion' is empty"),
    ('{"prompt": "a ", "completion": ["b"]}', "the column 'completion' holds a list, not text"),
    ('{"question": "a", "answer": "b"}', "no column 'prompt'"),
    ("7", "the line holds a int"),
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
        assert sorted(problem.line or 0 for problem in caught.value.problems) == list(range(2, 10))

    def test_skipping_lists_them(self, tokenizer: Any, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.jsonl", [line for line, _ in BROKEN])
        data = ready(tokenizer, path, on_error="skip")
        assert numbers(data.train) == [1, 10]
        assert data.report.counts.rows == 10 and data.report.counts.skipped == 8
        assert sorted(bad["row"] for bad in data.report.skipped) == list(range(2, 10))
        assert all(bad["message"] and bad["expected"] for bad in data.report.skipped)
        assert "8 skipped" in "\n".join(data.report.lines())

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
        with pytest.raises(UserError, match=r"a\.jsonl:2: the chat template refuses roles user tool assistant"):
            ready(tokenizer, path, chat_template="gemma")

    @pytest.mark.parametrize("label", [None, float("nan"), "", " ", {"a": 1}])
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


def test_the_report_is_plain_data(tokenizer: Any, tmp_path: Path) -> None:
    report = ready(tokenizer, numbered(tmp_path / "a.jsonl", 3)).report
    assert json.loads(json.dumps(report.as_dict()))["counts"]["rows"] == 3
    assert report.lines()[1] == "3 rows, 3 kept"
