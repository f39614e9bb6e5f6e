"""`peft count-params` on a GPT-3-shaped config, for every method: exact numbers, and no memory for weights.

All methods in one process, within the memory that one is allowed. `python -m benchmarks.startup --only 175` measures
the CPU seconds of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import GPT3, SPECS

BYTES = 1.5e9
BASE = 174_604_259_328
TRAINS_THE_BASE = ("full", "freeze", "bitfit", "ln_tuning")
"""Methods that add no parameter."""


PROBE = """
import sys
from pathlib import Path
from peftcli.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
if sys.platform == "linux":  # getrusage would count what the process was before it became Python
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), file=sys.stderr)
"""


def test_every_method_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT3), encoding="utf-8")
    chosen = [word for method in SPECS.values() for word in ("--method", method)]
    command = [sys.executable, "-c", PROBE, "count-params", "--model", str(tmp_path), "--task", "causal_lm", "--json"]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if sys.platform == "linux":
        assert int(done.stderr.splitlines()[-1]) < BYTES
    rows = json.loads(done.stdout)
    assert [row["method"] for row in rows] == list(SPECS)
    for row in rows:
        assert 0 < row["trainable"] <= row["total"] and row["head"] == 0
        assert row["total"] == BASE if row["method"] in TRAINS_THE_BASE else row["total"] > BASE
        assert row["percent"] == pytest.approx(100 * row["trainable"] / row["total"])
        assert sum(row["by_module"].values()) == row["trainable"]
    lora = next(row for row in rows if row["method"] == "lora")
    assert lora["trainable"] == lora["saved"] == lora["total"] - BASE == 96 * 2 * 8 * 2 * 12288
