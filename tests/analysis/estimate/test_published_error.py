"""What `peft estimate` and docs/choosing.md say of their error is what the benchmark measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from peftcli.analysis.estimate.published_error import KEPT, published_trials, trials_from
from tests.command_line import Cli, Workspace

ROOT = Path(__file__).resolve().parents[3]


def test_the_range_is_that_of_the_trials() -> None:
    cell = {"family": "llama", "method": "lora", "length": 8, "checkpointing": False, "trained": 1000}
    cells = [{**cell, "config": 880, "measured": 990}, {**cell, "config": 1040, "measured": 1020}]
    found = trials_from({"machine": {}, "cells": cells})
    assert found.expected("config") == found.expected("data") == "-12 to +4% in 2 trials on a CPU; unknown on a GPU"
    assert found.expected("measured").startswith("-1 to +2% in 2 trials")
    assert (found.within("config", 10), found.within("measured", 3)) == (1, 2)


def test_the_command_prints_the_range_of_the_shipped_trials(cli: Cli, workspace: Workspace) -> None:
    recipe = str(workspace.recipe())
    expected = published_trials().expected("config")
    assert f"expected error of the peak: {expected}" in " ".join(cli("estimate", recipe).out.split())
    assert json.loads(cli("estimate", recipe, "--json").out)["expected_error"] == expected


def test_the_shipped_trials_are_the_cells_of_the_benchmark() -> None:
    path = ROOT / "benchmarks" / "memory" / "estimate_error.py"
    spec = importlib.util.spec_from_file_location("estimate_error", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    shipped = [tuple(cell[key] for key in benchmark.KEYS) for cell in json.loads(KEPT.read_text())["cells"]]
    assert shipped == benchmark.CELLS


def test_the_page_has_every_trial() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    for cell in published_trials().cells:
        again = "yes" if cell.checkpointing else "no"
        start = f"| {cell.family} | `{cell.method}` | {cell.length} | {again} | {cell.trained / 1e6:,.0f} |"
        assert f"{start} {cell.error('config'):+.1f}% | {cell.error('measured'):+.1f}% |" in page
