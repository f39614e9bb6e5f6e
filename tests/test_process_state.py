"""What is set for the whole process: freed memory stays with it, unless a switch or the environment says no."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from peftcli.cli import train as command
from peftcli.cli.app import main

CHURN = """
import resource, sys
from peftcli.process_state import keep_freed_memory
done = keep_freed_memory() if "keep" in sys.argv else None
import torch
def step():
    blocks = [torch.ones(1_000_000) for _ in range(30)] + [torch.ones(15_000_000)]
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def churn(*words: str, **environment: str) -> tuple[str, int]:
    """Return what the setting answered, and the page faults of five equal steps after three."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CHURN, *words], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


@glibc
def test_steps_no_longer_fault_their_memory_in() -> None:
    _, plain = churn()
    answer, kept = churn("keep")
    assert answer == "True"
    assert plain > 10_000 > 10 * kept  # the block of 60 MB alone, five times, in pages of 4 KiB: 73,000


@glibc
def test_thresholds_of_the_environment_are_respected() -> None:
    assert churn("keep", MALLOC_TOP_PAD_="0")[0] == "False"


@pytest.mark.parametrize("on", [True, False])
def test_the_switch(recipe, monkeypatch, on) -> None:
    called = []
    monkeypatch.setattr(command, "keep_freed_memory", lambda: called.append(1))
    loaded = recipe(training__max_steps=1, training__fast_paths={"allocator": on})
    with pytest.raises(SystemExit) as ended:
        main(["train", loaded.path])
    assert ended.value.code == 0
    assert bool(called) == on
