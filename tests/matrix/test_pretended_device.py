"""Every method, setting and use of a run on a device that this machine lacks: nothing is left on the CPU.

A device of another kind than the CPU refuses operations on tensors of both. Where there is no CUDA, a pretended device
does the same (`tests.matrix.pretended_device`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANTED = "a tensor left on the CPU"


@pytest.mark.parametrize("part", ["methods", "settings", "uses"])
def test_nothing_is_left_on_the_cpu(part: str, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.matrix.on_pretended_device", part, str(output)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(output.read_text(encoding="utf-8"))
    planted = found.pop(PLANTED, None)
    assert part != "uses" or "StrayTensor" in planted
    wrong = {case: said for case, said in found.items() if said}
    assert found and not wrong, wrong
