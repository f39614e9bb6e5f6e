"""Held-out rows depend on what the rows hold and on the seed, and old runs keep the rows that they held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.rows.content_split import split_by_content
from peftcli.data.rows.split import split_rows
from peftcli.errors import UserError
from peftcli.recipe.aliases.renamed_keys import CHANGES, upgrade_
from tests.data.tools import chat_tokenizer, numbers, ready, write_jsonl
from tests.tiny import tiny_tokenizer

CLASSIFY = "sequence_classification"
RANDOM = np.random.default_rng(0)
HASHES = RANDOM.integers(0, 2**63, 100).astype(np.uint64)


@pytest.mark.parametrize("size", [0.1, 0.5, 1, 30])
def test_as_many_rows_as_asked_and_others_by_another_seed(size: float) -> None:
    train, held_out = split_by_content(HASHES, size, 0)
    assert len(held_out) == (size if size >= 1 else size * 100)
    assert sorted([*train, *held_out]) == list(range(100))
    assert held_out.tolist() == split_by_content(HASHES, size, 0)[1].tolist()
    assert held_out.tolist() != split_by_content(HASHES, size, 1)[1].tolist()


def test_the_order_of_the_rows_does_not_matter() -> None:
    order = RANDOM.permutation(100)
    first = set(HASHES[split_by_content(HASHES, 20, 3)[1]].tolist())
    assert set(HASHES[order][split_by_content(HASHES[order], 20, 3)[1]].tolist()) == first


def test_copies_of_a_row_are_rows_of_their_own() -> None:
    held_out = split_by_content(np.repeat(HASHES[:4], 50), 60, 0)[1]
    assert all(5 < count < 45 for count in np.bincount(held_out // 50, minlength=4))


def test_classes_keep_their_shares_and_groups_their_side() -> None:
    classes = np.array([0] * 80 + [1] * 20, dtype=np.int32)
    held_out = split_by_content(HASHES, 20, 0, classes=classes)[1]
    assert np.bincount(classes[held_out]).tolist() == [16, 4]
    groups = np.arange(100, dtype=np.uint64) // 10
    train, held_out = split_by_content(HASHES, 20, 0, groups=groups)
    assert len(held_out) == 20 and not set(groups[train]) & set(groups[held_out])
    with pytest.raises(UserError, match="all rows are in one group"):
        split_by_content(HASHES, 20, 0, groups=np.zeros(100, dtype=np.uint64))


@pytest.mark.parametrize("overflow", ["truncate", "drop"])
def test_the_same_rows_are_held_out_whatever_is_cut_or_dropped(tmp_path: Path, overflow: str) -> None:
    rows = [{"text": f"row {n} " + "long " * (n % 7), "label": "ab"[n % 2]} for n in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    whole = ready(tiny_tokenizer(cls=True), path, CLASSIFY, val_set_size=0.3)
    for tokenizer, length in ((tiny_tokenizer(cls=True), 9), (chat_tokenizer(), 30)):
        cut = ready(tokenizer, path, CLASSIFY, val_set_size=0.3, max_length=length, overflow=overflow)
        left = {*numbers(cut.train), *numbers(cut.validation[""])}
        assert numbers(cut.validation[""]) == [row for row in numbers(whole.validation[""]) if row in left]
        assert overflow == "truncate" or len(left) < 60


def test_rule_1_holds_out_the_rows_of_old_runs(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"row {n}"} for n in range(20)])
    old = ready(tokenizer, path, val_set_size=0.25, split_rule=1, seed=7)
    expected = split_rows(np.arange(20), 0.25, 7)[1] + 1
    assert numbers(old.validation[""]) == expected.tolist()
    assert numbers(ready(tokenizer, path, val_set_size=0.25, seed=7).validation[""]) != expected.tolist()
    for data, rule in (({"path": "a"}, 1), ({"path": "a", "split_rule": 2}, 2)):
        stored: dict[str, Any] = {"data": data}
        upgrade_(stored, CHANGES)
        assert stored["data"]["split_rule"] == rule


def test_validation_rows_that_are_missing_are_said(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    data = ready(tiny_tokenizer(cls=True), path, CLASSIFY, val_set_size=1)
    assert any("val_set_size asks for 1 validation rows, of which 0" in note for note in data.report.notes)
    rows = [{"text": f"row {n}"} for n in range(20)]
    data = ready(chat_tokenizer(), write_jsonl(tmp_path / "b.jsonl", rows), val_set_size=3)
    assert len(data.validation[""]) == 3 and data.report.notes == []
