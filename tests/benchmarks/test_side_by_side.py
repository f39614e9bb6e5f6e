"""The side-by-side: its arithmetic, its files, and one cell of a tiny model on both sides."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The scripts, which import each other as `python benchmarks/side_by_side.py` lets them."""
    sys.path.insert(0, str(BENCHMARKS))
    import cells
    import material
    import report
    import side_by_side

    yield SimpleNamespace(cells=cells, material=material, report=report, side_by_side=side_by_side)
    sys.path.remove(str(BENCHMARKS))


def run(*, seconds: float = 2.0, start: float = 5.0, **changes: Any) -> dict[str, Any]:
    """One side's measurements of three steps, of 100, 200 and 300 tokens."""
    ends = [start + seconds * step for step in range(3)]
    made = {
        "started": 0.0, "step_ends": ends, "step_tokens": [100, 200, 300], "supervised_share": 0.5,
        "losses": [3.0, 2.0, 1.0], "norms": [1.0, 1.0, 0.5], "compute": "float32", "peak_rss_bytes": 8 * 2**30,
        "peak_device_bytes": None,
    }  # fmt: skip
    return made | changes


def measured(bench: Any, cell: Any, **changes: Any) -> dict[str, Any]:
    """A whole record, as `measure` leaves it."""
    record = bench.report.summarise(cell, [run(seconds=1.0)], [run()])
    more = {"utilisation": 0.5, "utilisation_theirs": 0.2, "device": "cpu", "date": "2026-01-02", "imports": 4.0}
    return record | more | changes


def test_speed_leaves_the_first_steps_out(bench: Any) -> None:
    assert bench.report.speed(run(), 1) == 500 / 4.0
    assert bench.report.speed(run(), 2) == 300 / 2.0


def test_a_cell_is_medians_and_ratios_of_neighbouring_runs(bench: Any) -> None:
    ours = [run(seconds=1.0, peak_rss_bytes=4 * 2**30), run(seconds=2.0), run(seconds=0.5, peak_rss_bytes=2**30)]
    theirs = [run(seconds=2.0), run(seconds=2.0, start=7.0), run(seconds=2.0)]
    found = bench.report.summarise(replace(bench.cells.Cell(), steps=3), ours, theirs)
    assert (found["ours"], found["theirs"]) == (250.0, 125.0)
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == (2.0, 1.0, 4.0)
    assert (found["supervised_ours"], found["supervised_theirs"]) == (125.0, 62.5)
    assert found["memory_ratio"] == 0.5
    assert (found["first_step_ours"], found["first_step_theirs"]) == (5.0, 5.0)
    assert found["agree"] is True


def test_memory_is_the_devices_where_there_is_one(bench: Any) -> None:
    assert bench.report.memory(run(peak_device_bytes=7)) == 7
    assert bench.report.memory(run()) == 8 * 2**30


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({}, True),
        ({"losses": [3.0, 2.00005, 1.0]}, True),
        ({"losses": [3.0, 2.001, 1.0]}, False),
        ({"norms": [1.0, 1.0, 0.52]}, False),
        ({"losses": [3.0, 2.001, 1.0], "norms": [1.0, 1.0, 0.52], "compute": "bfloat16"}, True),
    ],
)
def test_losses_and_gradients_that_differ_are_said(bench: Any, changes: dict[str, Any], agrees: bool) -> None:
    cell = bench.cells.Cell()
    found = bench.report.agreement(cell, run(**changes), run())
    assert found["agree"] is agrees
    line = bench.report.line(cell.name, measured(bench, cell, **found))
    assert ("the sides differ" in line) is not agrees


def test_rows_in_another_order_are_not_compared(bench: Any) -> None:
    found = bench.report.agreement(bench.cells.Cell(tuned=True), run(losses=[9.0, 9.0, 9.0]), run())
    assert found == {"agree": None, "loss_difference": None, "norm_difference": None}


def test_a_run_without_dropout_is_what_is_compared(bench: Any) -> None:
    pair = (run(losses=[1.0, 1.0, 1.0]), run(losses=[1.0, 1.0, 1.0]))
    found = bench.report.summarise(bench.cells.Cell(), [run(losses=[5.0, 5.0, 5.0])], [run()], pair)
    assert found["agree"] is True
    assert found["compared_without_dropout"] is True


def test_cells_measured_before_stay(bench: Any) -> None:
    report, cell = bench.report, bench.cells.Cell()
    other = replace(cell, method="qlora")
    stored = report.merge({"sections": []}, "machine", "torch 1", measured(bench, cell))
    stored = report.merge(stored, "machine", "torch 1", measured(bench, other, date="2026-03-04"))
    stored = report.merge(stored, "machine", "torch 1", measured(bench, cell, date="2026-05-06"))
    (section,) = stored["sections"]
    assert {name: record["date"] for name, record in section["cells"].items()} == {
        cell.name: "2026-05-06",
        other.name: "2026-03-04",
    }
    newer = report.merge(stored, "machine", "torch 2", measured(bench, cell))
    assert [len(one["cells"]) for one in newer["sections"]] == [1, 2]


def test_the_page_keeps_what_was_written_by_hand(bench: Any) -> None:
    report, cell = bench.report, bench.cells.Cell()
    text = f"# Results\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\n## Plots\n"
    stored = report.merge({"sections": []}, "machine", "torch 1", measured(bench, cell))
    once = report.page(stored, text)
    assert once.startswith("# Results\n\nBefore.\n")
    assert once.endswith(f"{report.END}\n\n## Plots\n")
    assert "old" not in once
    assert report.page(stored, once) == once
    lines = once.splitlines()
    for listed in bench.cells.CPU_CELLS[1:]:
        assert any(line.startswith(f"| {listed.name} | not measured |") for line in lines), listed.name
    assert "Not measured: no GPU" in once
    other = bench.cells.CPU_CELLS[1]
    both = report.page(report.merge(stored, "machine", "torch 2", measured(bench, other)), text)
    newer, older = both.index("## machine; torch 2"), both.index("## machine; torch 1")
    assert cell.name + " |" not in both[newer:older] and other.name + " |" in both[newer:older]
    assert all(listed.name in once for listed in bench.cells.CUDA_CELLS)


def test_every_line_of_the_table_has_all_columns(bench: Any) -> None:
    report, cell = bench.report, bench.cells.Cell()
    failed = {"cell": cell.name, "failed": "ours.py failed with exit code 1", "date": "2026-01-02"}
    for record in (None, failed, measured(bench, cell)):
        assert report.line(cell.name, record).count("|") == len(report.COLUMNS) + 1


def test_the_committed_page_is_what_results_json_says(bench: Any) -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert bench.report.page(bench.report.load(BENCHMARKS / "results.json"), text) == text


def test_names_are_unique_and_describe_the_cell(bench: Any) -> None:
    names = [cell.name for cell in (*bench.cells.CPU_CELLS, *bench.cells.CUDA_CELLS)]
    assert len(set(names)) == len(names)
    cell = bench.cells.Cell(checkpointing=True, tuned=True)
    assert cell.name == "causal_lm/135m/lora/float32+ckpt+tuned"
    assert bench.cells.parse(cell.as_json()) == cell


def test_a_side_that_takes_too_long_is_ended(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.side_by_side, "HERE", tmp_path)
    (tmp_path / "slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    with pytest.raises(RuntimeError, match=r"slow\.py was not done after 1 s"):
        bench.side_by_side.run_side("slow.py", limit=1.0)


def test_of_the_cards_cells_those_are_listed_that_fit(bench: Any) -> None:
    cells = bench.cells.CUDA_CELLS
    lines = bench.side_by_side.listing(cells, 600).splitlines()
    certain = [cell for cell, line in zip(cells, lines, strict=True) if "only if" not in line]
    assert cells[:4] == certain[:4] and sum(cell.limit for cell in certain) <= 600 < sum(cell.limit for cell in cells)
    assert bench.side_by_side.listing(cells, float("inf")).splitlines() == [cell.name for cell in cells]


@pytest.mark.parametrize(("minutes", "begun"), [(None, 3), (1.1, 1), (0.1, 0)])
def test_no_cell_is_begun_that_may_end_later(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minutes: float | None, begun: int
) -> None:
    side_by_side, asked = bench.side_by_side, []
    now = iter(range(0, 100, 20))
    monkeypatch.setattr(side_by_side.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(side_by_side, "import_seconds", lambda _: 1.0)
    monkeypatch.setattr(side_by_side, "chosen", lambda _: bench.cells.CUDA_CELLS[:3])
    monkeypatch.setattr(side_by_side, "measure", lambda cell, *rest: asked.append(rest[-1]) or measured(bench, cell))
    words = [] if minutes is None else ["--minutes", str(minutes)]
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--tiny", "--material", str(tmp_path), *words])
    side_by_side.main()
    assert len(asked) == begun
    assert asked == [float("inf") if minutes is None else bench.cells.CUDA_CELLS[0].limit] * begun


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """Rows like GSM8K's, of different lengths."""
    file = tmp_path / "rows.jsonl"
    rows = ({"question": f"How much is {n} and {n}? " * (n + 1), "answer": f"Add.\nIt is {2 * n}."} for n in range(8))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adalora", "adapter"])
def test_both_sides_train_alike(bench: Any, method: str, tmp_path: Path, gsm8k: Path) -> None:
    """Four processes that import torch and transformers: a minute."""
    cell = replace(bench.cells.tiny(bench.cells.Cell(method=method)), steps=4, batch_size=2)
    record = bench.side_by_side.measure(cell, tmp_path, gsm8k, repeats=1)
    assert record["agree"] is True, record
    assert record["losses_ours"][0] > 1.0
    assert record["ours"] > 0
    assert record["theirs"] > 0
    assert record["memory_ours"] > 2**20
