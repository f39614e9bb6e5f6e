"""Starting several processes of one run on this machine; inside torchrun or `accelerate launch` nothing is started.

Each process runs the same command. They find each other through the environment variables that torch.distributed and
Accelerate read, so that a run under another launcher is the same run.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from peftcli.process_state import signals_to_children

POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0
"""How long the others may take to stop after one has ended with an error."""


SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which launchers (torchrun, Accelerate, MPI's) tell how many processes they started."""


def is_launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return any(int(os.environ.get(name) or 1) > 1 for name in SIZES)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m peftcli ARGUMENTS` in several processes; return the exit code of the first that failed, or 0.

    The first process has this one's output. What the others say on standard error is shown if one of them fails and the
    first does not say why.
    """
    port = os.environ.get("MASTER_PORT") or _port()
    with tempfile.TemporaryFile("w+") as other_errors, signals_to_children() as children:
        for rank in range(processes):
            children.append(_start(arguments, rank, processes, port, other_errors))
        code = _wait(children)
        if code not in (0, 130) and children[0].returncode in (0, -signal.SIGTERM):
            other_errors.seek(0)
            sys.stderr.write(other_errors.read())
    return code


def _start(
    arguments: Sequence[str], rank: int, processes: int, port: str, other_errors: IO[str]
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    # the processes share the cores: with a thread for every core in each of them, all would be slower
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    stdout = None if rank == 0 else subprocess.DEVNULL
    stderr = None if rank == 0 else other_errors
    return subprocess.Popen(
        [sys.executable, "-m", "peftcli", *arguments], env=environment, stdout=stdout, stderr=stderr
    )


def _port() -> str:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, stop the others."""
    while any(child.poll() is None for child in children):
        failed = [child.returncode for child in children if child.poll() not in (None, 0)]
        if failed and failed[0] != 130:  # 130: stopped by the user, the others are saving, too
            _stop(children)
            return _exit_code(failed[0])
        time.sleep(POLL_SECONDS)
    return next((_exit_code(child.returncode) for child in children if child.returncode), 0)


def _exit_code(code: int) -> int:
    """Return a shell's exit code: a process that a signal ended has a negative one."""
    return code if code >= 0 else 128 - code


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        if child.poll() is None:
            child.kill()  # they wait for a process that has ended, and handle no other signal meanwhile
    for child in children:
        child.wait(max(0.1, deadline - time.monotonic()))
