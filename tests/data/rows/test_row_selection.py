"""Which rows are trained on and which are evaluated: splits by share, class and group, weights, and a limit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.prepare import prepare
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource, DataSpec
from tests.data.tools import numbered, numbers, ready, write_jsonl
from tests.tiny import tiny_tokenizer

CLASSIFY = "sequence_classification"


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


def test_a_weight_that_leaves_no_row_of_its_source_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    one, two = numbered(tmp_path / "one.jsonl", 40), numbered(tmp_path / "two.jsonl", 6)
    sources = [DataSource(path=str(one)), DataSource(path=str(two), weight=0.01)]
    with pytest.raises(UserError, match=r"a weight of 0\.01 leaves none of the 6 training rows") as caught:
        prepare(DataSpec(datasets=sources, val_set_size=0), "causal_lm", tokenizer, seed=0)
    assert caught.value.problems[0].key == "data.datasets.1.weight"


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
