"""The report of a card: tests run in processes of their own, and what they leave is there whatever ends them."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_report import card_report as gpu_report


def test_a_file_of_tests_runs_and_each_outcome_is_kept() -> None:
    found = gpu_report.run_file("test_one_card.py", "cpu", 200.0, "adamw_torch or paged_adamw_8bit")
    outcomes = {test["test"]: test["outcome"] for test in found}
    assert outcomes["test_one_card.py::test_an_optimizer_trains[cpu-adamw_torch]"] == "passed"
    assert outcomes["test_one_card.py::test_an_optimizer_trains[cpu-paged_adamw_8bit]"] == "skipped"


def test_a_file_that_takes_too_long_is_stopped_and_said() -> None:
    (stopped,) = gpu_report.run_file("test_one_card.py", "cpu", 0.1, "")
    assert stopped["outcome"] == "failed" and "stopped after" in stopped["said"]


def test_without_a_card_nothing_is_written(tmp_path, capsys, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_report.main(["--output", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_tests_are_listed_without_a_card(capsys) -> None:
    assert gpu_report.main(["--list", "--seconds", "100", "--select", "adamw_torch or paged_adamw_8bit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if not line.startswith(" ")) == "test_one_card.py: 2 tests, 55 s"
    assert "  test_an_optimizer_trains[cuda-paged_adamw_8bit]" in lines and not [one for one in lines if "cpu" in one]


@pytest.mark.parametrize("outcome", ["passed", "failed"])
def test_the_report_is_a_page_and_a_record(tmp_path, monkeypatch, outcome: str) -> None:
    test = {"test": "a.py::test_a[cuda]", "outcome": outcome, "seconds": 1.5, "figures": {"tokens_per_second": 12000}}
    monkeypatch.setattr(gpu_report, "run_all", lambda *_: [{**test, "said": "because", "peak_memory_mb": 7}])
    code = gpu_report.main(["--device", "cpu", "--output", str(tmp_path)])
    assert code == int(outcome == "failed")
    page = (tmp_path / "gpu_report.md").read_text(encoding="utf-8")
    assert f"| a.py::test_a[cuda] | {outcome} | 1.5 | 7 | tokens_per_second 12,000 |" in page
    assert ("because" in page) == (outcome == "failed")
    record = json.loads((tmp_path / "gpu_report.json").read_text(encoding="utf-8"))
    assert record["tests"][0]["outcome"] == outcome and record["versions"]["torch"]
