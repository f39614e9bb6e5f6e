"""`peft count-params` on a GPT-3-shaped config, for every method: exact numbers, and no memory for weights.

All methods in one process, within the memory that one is allowed. `python -m benchmarks.startup --only 175` measures
the CPU seconds of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import GPT3, SPECS

BYTES = 1.5e9
BASE = 174_604_259_328


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the peak memory of one child needs wait4, which Windows lacks")
def test_every_method_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT3), encoding="utf-8")
    chosen = [word for method in SPECS.values() for word in ("--method", method)]
    command = [sys.executable, "-m", "peftcli", "count-params", "--model", str(tmp_path), "--task", "causal_lm"]
    child = subprocess.Popen([*command, *chosen, "--json"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    rows = json.load(child.stdout)
    child.stdout.close()
    _, child.returncode, usage = os.wait4(child.pid, 0)
    assert [row["method"] for row in rows] == list(SPECS)
    assert usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) < BYTES
    for row in rows:
        assert 0 < row["trainable"] <= row["total"] and row["head"] == 0
        assert row["total"] == BASE if row["method"] in ("full", "freeze", "bitfit") else row["total"] > BASE
        assert row["percent"] == pytest.approx(100 * row["trainable"] / row["total"])
        assert sum(row["by_module"].values()) == row["trainable"]
    lora = next(row for row in rows if row["method"] == "lora")
    assert lora["trainable"] == lora["saved"] == lora["total"] - BASE == 96 * 2 * 8 * 2 * 12288
