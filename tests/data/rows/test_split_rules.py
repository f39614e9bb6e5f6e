"""Held-out rows do not depend on what is cut or dropped, and old runs keep the rows that they held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare
from peftcli.data.rows.split import split_rows
from peftcli.recipe.aliases.renamed_keys import CHANGES, upgrade_
from peftcli.recipe.schema import DataSpec
from tests.data.tools import chat_tokenizer, numbers, ready, write_jsonl
from tests.tiny import tiny_tokenizer

CLASSIFY = "sequence_classification"


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


def test_rule_1_holds_out_the_rows_of_old_runs(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(cls=True)
    rows = [{"text": "word " * (1 + 30 * (n % 2)), "label": "ab"[n // 2 % 2]} for n in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    left = np.arange(0, 40, 2)
    found = {}
    for rule in (1, 2):
        data = ready(tokenizer, path, CLASSIFY, val_set_size=0.25, split_rule=rule, seed=7, stratify=False,
                     max_length=20, overflow="drop")  # fmt: skip
        found[rule] = numbers(data.validation[""])
    assert found[1] == (split_rows(left, 0.25, 7)[1] + 1).tolist()
    expected = split_rows(np.arange(40), 0.25, 7)[1]
    assert found[2] == [int(row) + 1 for row in expected if row in left] != found[1]
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


def test_split_seed_keeps_the_rows_of_runs_with_other_seeds(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(40)]
    sources: Any = [{"path": str(write_jsonl(tmp_path / "a.jsonl", rows)), "weight": 0.5},
               {"path": str(write_jsonl(tmp_path / "b.jsonl", rows))}]  # fmt: skip

    def split(seed: int, split_seed: int | None) -> tuple[list[int], list[int]]:
        spec = DataSpec(datasets=sources, val_set_size=9, max_rows=30, num_proc=1, split_seed=split_seed)
        data = prepare(spec, "causal_lm", chat_tokenizer(), seed=seed)
        return numbers(data.train), numbers(data.validation[""])

    assert split(0, 3) == split(1, 3) == split(3, None)
    assert split(0, 3)[0] != split(0, None)[0] and split(0, 3)[1] != split(0, None)[1]
