"""Preference tuning beside TRL: the table's arithmetic, its place in RESULTS.md, and this project's side."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    import beside_trl
    import material

    yield SimpleNamespace(beside_trl=beside_trl, material=material)
    sys.path.remove(str(BENCHMARKS))


def run(seconds: float, memory: int) -> dict[str, Any]:
    """One side's measurements of three steps of 100 tokens; the first ends after 5 seconds."""
    return {
        "started": 10.0, "step_ends": [15.0 + seconds * step for step in range(3)], "step_tokens": [100, 100, 100],
        "supervised_share": 0.5, "losses": [0.7, 0.6, 0.5], "norms": [1.0, 1.0, 1.0], "compute": "float32",
        "peak_rss_bytes": memory * 2**30, "peak_device_bytes": None,
    }  # fmt: skip


def record(bench: Any, repeats: int) -> dict[str, Any]:
    cell, *_ = bench.beside_trl.CELLS
    both = {"ours": run(1.0, 2), "theirs": run(2.5, 5)}
    return {
        "machine": "a machine", "date": "2026-01-02", "versions": "trl 1", "model": "135m", "cells": [vars(cell)],
        "runs": {cell.name: [both] * repeats},
    }  # fmt: skip


def test_steps_and_the_whole_process_are_measured(bench: Any) -> None:
    found = bench.beside_trl.summarise(bench.beside_trl.CELLS[0], [{"ours": run(1.0, 2), "theirs": run(2.5, 5)}])
    assert (found["ours"], found["theirs"], found["ratio"]) == (100.0, 40.0, 2.5)
    assert (found["whole_ours"], found["whole_theirs"]) == (300 / 7, 30.0)
    assert found["memory_ratio"] == pytest.approx(0.4)


@pytest.mark.parametrize("repeats", [0, 2])
def test_the_table_takes_its_place_in_the_page(bench: Any, repeats: int) -> None:
    script = bench.beside_trl
    text = f"# Results\n\nBefore.\n\n{script.BEGIN}\nold\n{script.END}\n\nAfter.\n"
    once = script.page(text, record(bench, repeats))
    assert once.startswith("# Results\n\nBefore.\n") and once.endswith(f"{script.END}\n\nAfter.\n")
    assert "old" not in once and script.page(once, record(bench, repeats)) == once
    (line,) = (line for line in once.splitlines() if line.startswith("| preference/135m/lora/float32 "))
    assert line.count("|") == len(script.COLUMNS) + 1
    assert ("**2.50** (2.50 to 2.50, 2 repeats)" in line) == bool(repeats)


def test_the_committed_page_has_the_place(bench: Any) -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert bench.beside_trl.BEGIN in text and bench.beside_trl.END in text
    file = BENCHMARKS / "preference.json"
    if file.exists():
        assert bench.beside_trl.page(text, json.loads(file.read_text(encoding="utf-8"))) == text


def test_the_pairs_are_different_answers_to_each_question(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = ({"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(3))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = list(bench.material.pair_rows(tmp_path, file, 4))
    assert len(made) == 4 and all(row["chosen"] != row["rejected"] for row in made)
    assert made[0] == {"prompt": "How much is 0 and 0?\n", "chosen": "It is 0.", "rejected": "It is 2."}
