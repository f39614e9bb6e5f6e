"""Which device the tests of this folder run on, and what they leave for `benchmarks.gpu_report`.

Each test takes the fixture `device`. On `cuda` it is marked `gpu`, and skipped where there is no card. On `cpu` it is a
test like any other, so that its code runs on every machine; those that only a card can answer are marked `card_only`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

RESULTS = "PEFTCLI_GPU_RESULTS"
"""Environment variable: a file that gets a line of JSON for each test that ran."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on a card, and on the CPU where that makes sense."""
    if "device" in metafunc.fixturenames:
        on_a_card = pytest.param("cuda", marks=pytest.mark.gpu)
        alone = metafunc.definition.get_closest_marker("card_only") is not None
        metafunc.parametrize("device", [on_a_card] if alone else [on_a_card, "cpu"])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a card, before its fixtures cost time."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip(
                "needs a CUDA device, and torch finds none: `python -m benchmarks.gpu_report` where there is one"
            )
        torch.cuda.reset_peak_memory_stats()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Write down how a test ended, as soon as it did: a later one may take the process with it."""
    outcome = yield
    found = outcome.get_result()
    file = os.environ.get(RESULTS)
    if file is None or (found.when != "call" and found.passed):
        return
    line = {
        "test": item.nodeid.rpartition("/")[2],
        "outcome": found.outcome,
        "seconds": round(found.duration, 1),
        "figures": dict(found.user_properties),
        "said": "" if found.passed else str(found.longrepr)[-2000:],
    }
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_initialized():
        line["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    with Path(file).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
