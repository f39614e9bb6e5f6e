"""Two processes of `peft train` whose launcher is killed: nobody reads what they do, and what they did is kept."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux tells when another's child has ended")
ENDS_WITHIN = 60.0


def test_processes_whose_launcher_is_killed_save_after_the_step_and_end(recipe) -> None:
    """No step is logged after the first: they agree without."""
    never = {"training__max_steps": 10**6, "training__save_steps": 10**6, "training__logging_steps": 10**6}
    loaded = recipe(training__save_strategy="steps", **never)
    command = [sys.executable, "-m", "peftcli", "train", loaded.path, "--num-processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as launcher:
        try:
            assert launcher.stderr is not None
            while not (line := launcher.stderr.readline()).startswith("step 1/"):
                assert line, "it ended before its first step"
            workers = [os.pidfd_open(child) for child in children(launcher.pid)]
            launcher.kill()
            assert [bool(select.select([one], [], [], ENDS_WITHIN)[0]) for one in workers] == [True, True]
        finally:
            os.killpg(launcher.pid, signal.SIGKILL)
    run = Path(loaded.recipe.output_dir)
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    assert not list(run.glob(".*"))


def children(parent: int) -> list[int]:
    """Return the processes that a process started and that have not ended."""
    listed = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]
