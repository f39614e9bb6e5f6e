"""A process that stands still ends the run within `distributed.timeout`, and the step is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from peftcli.distributed.launch.failed_processes import endings, exit_code

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux tells when another's child has ended")


def test_a_process_that_stands_still_ends_the_run_and_the_step_is_named(recipe) -> None:
    """The first process stands still: what another one says is shown."""
    loaded = recipe(training__max_steps=10**6, distributed__timeout=2, training__logging_steps=10**6)
    command = [sys.executable, "-m", "peftcli", "train", loaded.path, "--num-processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as launcher:
        try:
            assert launcher.stderr is not None
            while not (line := launcher.stderr.readline()).startswith("step 1/"):
                assert line, "it ended before its first step"
            os.kill(worker(launcher.pid, 0), signal.SIGSTOP)
            said = launcher.stderr.read()
            assert launcher.wait(60) == 2
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
    assert "error: step " in said and "has taken more than 2 s" in said
    assert "distributed.timeout" in said and "memory" not in said


def test_what_the_first_process_said_counts_where_the_launcher_killed_the_other(capsys) -> None:
    assert exit_code(endings({0: 2, 1: -9}, [0, 1], {1: ""}), stopped=False) == 2
    assert capsys.readouterr().err == ""
    assert exit_code(endings({0: 2, 1: -9}, [1, 0], {1: ""}), stopped=False) == 2
    assert "ended by SIGKILL" in capsys.readouterr().err


def worker(launcher: int, rank: int) -> int:
    """Return the process of a rank that a launcher started."""
    children = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and parent(int(pid)) == launcher]
    return next(child for child in children if f"RANK={rank}" in environment(child))


def parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def environment(pid: int) -> list[str]:
    with open(f"/proc/{pid}/environ", encoding="utf-8") as file:
        return file.read().split("\0")
