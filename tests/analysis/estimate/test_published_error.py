"""What `peft estimate` and docs/choosing.md say of their error is what the benchmark measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.analysis.estimate import published_error
from peftcli.analysis.estimate.published_error import KEPT, published_trials, trials_from
from tests.command_line import Cli, Workspace

ROOT = Path(__file__).resolve().parents[3]


def benchmark() -> Any:
    """Return the module that measures."""
    path = ROOT / "benchmarks" / "memory" / "estimate_error.py"
    spec = importlib.util.spec_from_file_location("estimate_error", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


CELL = {"family": "llama", "method": "lora", "length": 8, "checkpointing": False, "trained": 1000}


def test_the_range_is_that_of_the_trials() -> None:
    cells = [{**CELL, "config": 880, "measured": 990}, {**CELL, "config": 1040, "measured": 1020}]
    (found,) = trials_from([{"machine": {}, "cells": cells}])
    assert found.expected("config") == found.expected("data") == "-12 to +4% in 2 trials on a CPU; unknown on a GPU"
    assert found.expected("measured").startswith("-1 to +2% in 2 trials")
    assert (found.within("config", 10), found.within("measured", 3)) == (1, 2)


def test_the_error_is_that_of_the_last_machine_with_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    few, all_of_them = [{**CELL, "config": 900, "measured": 990}], [{**CELL, "config": 1010, "measured": 990}] * 2
    records = [{"machine": {}, "cells": cells} for cells in (few, all_of_them, [{**CELL, **few[0]}] * 2)]
    monkeypatch.setattr(published_error, "published_trials", lambda: trials_from(records))
    assert published_error.expected_error("config").startswith("+1 to +1% in 2 trials")


def test_cells_of_another_processor_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, cell = benchmark(), {**CELL, "config": 1, "measured": 1}
    here = module.this_machine()
    other = {"machine": {**here, "processor": "another with as many cores"}, "cells": [cell]}
    ours = {"machine": {**here, "date": "2020-01-01"}, "cells": [{**cell, "length": 16}]}
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps([ours, other]), encoding="utf-8")
    monkeypatch.setattr(module, "KEPT", kept)
    found, others = module.by_machine(here)
    assert list(found) == [("llama", "lora", 16, False)] and others == [other]


def test_the_command_prints_the_range_of_the_shipped_trials(cli: Cli, workspace: Workspace) -> None:
    recipe = str(workspace.recipe())
    expected = published_error.expected_error("config")
    assert f"expected error of the peak: {expected}" in " ".join(cli("estimate", recipe).out.split())
    assert json.loads(cli("estimate", recipe, "--json").out)["expected_error"] == expected


def test_the_shipped_trials_are_the_cells_of_the_benchmark() -> None:
    module = benchmark()
    for record in json.loads(KEPT.read_text()):
        shipped = [tuple(cell[key] for key in module.KEYS) for cell in record["cells"]]
        assert shipped == [cell for cell in module.CELLS if cell in shipped]
    assert max(len(record["cells"]) for record in json.loads(KEPT.read_text())) == len(module.CELLS)


def test_the_page_has_every_trial() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    for trials in published_trials():
        assert trials.machine["processor"] in page
        for cell in trials.cells:
            again = "yes" if cell.checkpointing else "no"
            start = f"| {cell.family} | `{cell.method}` | {cell.length} | {again} | {cell.trained / 1e6:,.0f} |"
            assert f"{start} {cell.error('config'):+.1f}% | {cell.error('measured'):+.1f}% |" in page
