"""`peft count-params` on a GPT-3-shaped config, for every method: the whole process in seconds and little memory.

The quick test counts all methods in one process, within the memory that one is allowed; the slow one starts a process
for each and holds it to the time as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftcli.protocol.registry import registry

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="the peak memory of one child needs wait4")

SHAPE = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048, "vocab_size": 50257}
SECONDS, BYTES = 8.0, 1.5e9
BASE = 174_604_259_328
SPECS = {
    **{name: name for name in registry.names()},
    "compose": "compose:parts=[{name: prefix_tuning},{name: adapter},{name: adalora}]",
}


def counted(directory: Path, *methods: str) -> tuple[list[dict[str, Any]], float, float]:
    """Return the rows of one process, its CPU seconds (neighbours count less than on the clock) and its peak bytes."""
    (directory / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    chosen = [word for method in methods for word in ("--method", method)]
    command = [sys.executable, "-m", "peftcli", "count-params", "--model", str(directory), "--task", "causal_lm"]
    child = subprocess.Popen([*command, *chosen, "--json"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    rows = json.load(child.stdout)
    child.stdout.close()
    _, child.returncode, usage = os.wait4(child.pid, 0)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return rows, usage.ru_utime + usage.ru_stime, peak


def test_every_method_in_one_process(tmp_path: Path) -> None:
    rows, _, peak = counted(tmp_path, *SPECS.values())
    assert [row["method"] for row in rows] == list(SPECS)
    assert peak < BYTES
    for row in rows:
        assert 0 < row["trainable"] <= row["total"] and row["head"] == 0
        assert row["total"] == BASE if row["method"] in ("full", "freeze", "bitfit") else row["total"] > BASE
        assert row["percent"] == pytest.approx(100 * row["trainable"] / row["total"])
        assert sum(row["by_module"].values()) == row["trainable"]


@pytest.mark.slow
@pytest.mark.parametrize("method", SPECS)
def test_each_method_takes_seconds(tmp_path: Path, method: str) -> None:
    (row,), seconds, peak = counted(tmp_path, SPECS[method])
    assert row["method"] == method
    assert seconds < SECONDS and peak < BYTES, (seconds, peak)
