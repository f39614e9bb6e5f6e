"""Starting several processes of one run on this machine; inside torchrun or `accelerate launch` nothing is started.

Torch's elastic launcher, which is torchrun's, starts the processes, watches them and ends those that are left when one
has failed. They find each other through the environment variables that torch.distributed and Accelerate read, so that
a run under another launcher is the same run. Around it there is what torch's launcher leaves open: a request to stop
reaches every process once, each ends when the launcher is killed, and the words of the first to fail are shown.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from peftcli.distributed.launch.failed_processes import Ending, crashed, endings, exit_code
from peftcli.distributed.launch.launcher_line import LauncherLine
from peftcli.distributed.launch.schedulers import LAUNCHERS, launcher_of, number
from peftcli.distributed.launched_worker import LAUNCHED
from peftcli.distributed.usable_cores import usable_cores
from peftcli.errors import UserError
from peftcli.process_state import environment_without, quiet_elastic
from peftcli.stop_signals import requests_passed_on

POLL_SECONDS = 0.2

SIZES = tuple(one.size for one in LAUNCHERS)
"""Environment variables in which launchers (torchrun, MPI's, Slurm's) tell how many processes they started."""


def is_launched() -> bool:
    """Whether this process is one of several that a launcher started.

    Raises:
        UserError: one of a launcher's variables is not a number.
    """
    return launcher_of(os.environ) is not None


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    launcher = launcher_of(os.environ)
    return launcher is None or number(os.environ, launcher.rank, 0) == 0


def is_restarted() -> bool:
    """Whether torch's launcher (`torchrun --max-restarts`) started these processes after others that had failed."""
    return number(os.environ, "TORCHELASTIC_RESTART_COUNT", 0) > 0


def launch_peft(
    arguments: Sequence[str], processes: int, *, restarts: int = 0, again: Sequence[str] | None = None
) -> int:
    """Run `peft` with these arguments in several processes on this machine; return the exit code.

    For every command with `--num-processes`: where `is_launched()` is false, it calls this with its own arguments and
    ends with the code; each process that is started runs the same command, finds `is_launched()` true, and goes on.

    Args:
        arguments: of the command line, the command's name first; `--num-processes` may be among them.
        restarts: how often to start them again, at most, after a crash.
        again: the arguments then; by default the same.
    """
    peft = (sys.executable, "-m", "peftcli")
    return launch([*peft, *arguments], processes, restarts=restarts, again=[*peft, *(again or arguments)])


def launch(command: Sequence[str], processes: int, *, restarts: int = 0, again: Sequence[str] | None = None) -> int:
    """Run a command of this program in several processes; return its exit code.

    The first process has this one's output and says how a run ends. A request to stop goes to all processes once,
    however many signals bring it. When one fails the others are ended, and what the first to fail said is shown.

    Args:
        restarts: how often to start them again, at most, after a crash: a signal, or an error of this program.
        again: the command then; by default the same.

    Raises:
        UserError: the processes cannot be started.
    """
    for attempt in range(restarts + 1):
        ended, stopped = _attempt(command, processes)
        code = exit_code(ended, stopped=stopped)
        if code == 0 or stopped or not crashed(ended) or attempt == restarts:
            break
        print(f"note: the processes are started again ({attempt + 1} of {restarts})", file=sys.stderr, flush=True)
        command = again or command
    return code


def _attempt(command: Sequence[str], processes: int) -> tuple[list[Ending], bool]:
    """Run the processes once; return how they ended, and whether they were asked to stop."""
    with ExitStack() as stack:
        errors = {rank: stack.enter_context(tempfile.TemporaryFile()) for rank in range(1, processes)}
        line = stack.enter_context(LauncherLine())
        stop = stack.enter_context(requests_passed_on(line.tell))
        stack.enter_context(_environment(line.address, processes))
        stack.enter_context(quiet_elastic())
        failed = _run(command, processes, errors)
        # what a process said last counts: it may be ended while libraries take it down
        codes = {rank: line.codes.get(rank, failed.get(rank, 0)) for rank in range(processes)}
        said = {rank: _text(file) for rank, file in errors.items()}
        return endings(codes, line.left, said), stop.requested


def _run(command: Sequence[str], processes: int, errors: Mapping[int, IO[bytes]]) -> dict[int, int]:
    """Run the processes to their end; return the exit codes of those that failed, by rank.

    Torch's launcher takes signals for itself in the main thread only, and would pass each of them on.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from peftcli.distributed.launch.process_streams import ProcessStreams

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=ProcessStreams(errors),
    )
    program, *arguments = (word.replace("$", "$$") for word in command)  # torch's launcher substitutes ${local_rank}
    failed: dict[int, int] = {}
    problem: list[Exception] = []

    def run() -> None:
        try:
            elastic_launch(config, program)(*arguments)
        except ChildFailedError as error:
            failed.update((rank, failure.exitcode) for rank, failure in error.failures.items())
        except Exception as error:
            problem.append(error)

    thread = threading.Thread(target=run, name="elastic", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)  # in short pieces: Windows hears no Ctrl-C while it waits
    if problem:
        remedy = "they need the loopback interface (127.0.0.1) and free ports on it"
        raise UserError(f"the processes could not be started: {problem[0]}", suggestion=remedy) from problem[0]
    return failed


@contextmanager
def _environment(address: str, processes: int) -> Iterator[None]:
    """Have the variables inside that the processes inherit; what another launcher said does not count."""
    # the processes share the cores: with a thread for every core in each of them, all would be slower
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // processes))
    with environment_without(("TORCHELASTIC_",), {"OMP_NUM_THREADS": threads, LAUNCHED: address}):
        yield


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
