"""Prediction beside HF peft: what a side's output holds, the table's arithmetic, and how far two sides agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.record import between
from benchmarks.prediction import __main__ as program
from benchmarks.prediction.prediction_table import BEGIN, END, agreement, line, page_part
from benchmarks.prediction.prediction_works import WORKS, Material, words

ROOT = Path(__file__).parents[2]
GIB = 2**30


def run(few: float, many: float, peak: float) -> dict[str, Any]:
    sides = {"few": few, "many": many}
    return {name: {"seconds": value, "cpu_seconds": value, "peak_bytes": peak * GIB} for name, value in sides.items()}


def table(loss: float = 2.0) -> dict[str, Any]:
    """A work measured twice: ours takes 10 and 12 seconds for the rows beyond the few, the other 25 and 24."""
    ours = {"runs": [run(5, 15, 1.0), run(5, 17, 1.0)], "found": {"predictions": ["a", "b"]}, "tokens": 1100}
    others = {"predictions": ["a", "c"], "loss": loss}
    theirs = {"runs": [run(6, 31, 2.0), run(6, 30, 2.0)], "found": others, "tokens": 1100}
    evaluated = {"runs": [], "found": {"loss": 2.0}, "tokens": 0}
    conditions = {"dtype": "float32", "few": 2, "many": 4, "model": "m", "machine": "c", "threads": 2, "versions": "v"}
    return {
        "says": "texts", "ours": "peft predict", "conditions": conditions, "commit": "c", "date": "d",
        "sides": {"peft predict": ours, "peft eval": evaluated, "generate": theirs},
    }  # fmt: skip


def test_ratios_are_those_of_neighbouring_runs() -> None:
    found = line(table(), "generate").split(" | ")
    assert found[1] == "24.5 (24.00 to 25.00, 2 repeats)"
    assert found[2] == "45"
    assert found[3] == "**2.25** (2.00 to 2.50, 2 repeats)"
    assert found[5:7] == ["2.00", "**0.50**"]
    assert "1 of 2 predictions" in found[7]
    assert "**" not in line(table(), "peft predict")
    assert page_part({}) == "Not measured yet."
    assert page_part({"tables": {"texts/float32": table()}}).count("\n| ") == 3  # a side that never ran has no line


@pytest.mark.parametrize(("loss", "differs"), [(2.0001, False), (2.001, True)])
def test_losses_that_lie_apart_are_marked(loss: float, differs: bool) -> None:
    assert ("**differs**" in agreement(table(loss), "generate", "float32")) is differs


def test_what_a_side_printed_is_read() -> None:
    texts = '{"prediction": "x", "scores": {"tokens": 3}}\n{"prediction": "y", "scores": {"tokens": 4}}\n'
    assert program._found(texts) == {"predictions": ["x", "y"], "written": 7}
    assert program._found('a note\n{\n "eval_loss": 1.5,\n "eval_rows": 3\n}\n') == {"loss": 1.5, "written": 0}


def test_every_word_of_every_command_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Material, "trained", lambda *_: (tmp_path / "run", tmp_path / "adapter"))
    monkeypatch.setattr(Material, "checkpoint", lambda *_: tmp_path)
    material = Material(tmp_path, tmp_path, tmp_path)
    for work in WORKS:
        assert work.sides[0].name.startswith("peft") and work.few < work.many
        for side in work.sides:
            known = words(work, side, material, tmp_path / "rows", "float32", 8)
            assert not any("{" in part.format(**known, out="o") for part in side.command)


def test_its_place_in_the_page_is_there() -> None:
    results = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    stored = ROOT / "benchmarks/prediction.json"
    record = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    assert between(results, BEGIN, END, page_part(record)) == results
