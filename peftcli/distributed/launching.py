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
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO

from peftcli.distributed.launched_worker import END, GRACE_SECONDS, LAUNCHED, PEER_LOST, STOP
from peftcli.errors import Stopped, UserError
from peftcli.stop_signals import requests_passed_on

POLL_SECONDS = 0.2
SAVING_SECONDS = 30.0
"""How long the others may take to stop after one has stopped as asked: they have all saved by then."""

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which launchers (torchrun, Accelerate, MPI's) tell how many processes they started."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""In which they tell a process its number; the first that is set counts, as for Accelerate."""

_STOPPED = Stopped.exit_code
_ASKING = (-signal.SIGINT, -signal.SIGTERM, -1)
"""Exit codes of processes that a request to stop ended before they could listen; -1 is SIGHUP, which Windows lacks."""
_ALARM = -int(getattr(signal, "SIGALRM", 0))  # Windows has none
_LINES = 60
"""Of what a process said, at most so many are shown."""


def is_launched() -> bool:
    """Whether this process is one of several that a launcher started.

    Raises:
        UserError: one of a launcher's variables is not a number.
    """
    return any(_number(name, 1) > 1 for name in SIZES)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return next((_number(name, 0) == 0 for name in RANKS if os.environ.get(name)), True)


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name) or default)
    except ValueError as error:
        value = os.environ[name]
        raise UserError(f"the environment variable {name} is {value!r}, not a number", suggestion="unset it") from error


def launch_peft(arguments: Sequence[str], processes: int) -> int:
    """Run `peft` with these arguments in several processes on this machine; return the exit code.

    For every command with `--num-processes`: where `is_launched()` is false, it calls this with its own arguments and
    ends with the code; each process that is started runs the same command, finds `is_launched()` true, and goes on.

    Args:
        arguments: of the command line, the command's name first; `--num-processes` may be among them.
    """
    return launch([sys.executable, "-m", "peftcli", *arguments], processes)


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command of this program in several processes; return its exit code.

    The first process has this one's output and says how a run ends. A request to stop goes to all processes once,
    however many signals bring it. When one fails the others are ended, and what the first to fail said is shown.
    """
    with ExitStack() as files:
        crew = _Crew(command, processes, files)
        stop = files.enter_context(requests_passed_on(crew.tell))
        try:
            crew.start()
            crew.wait()
        finally:
            crew.end()
        return crew.explain(stopped=stop.requested)


@dataclass(frozen=True)
class _Worker:
    """One process.

    Args:
        errors: what it writes to standard error; None for the first, whose words are shown at once.
    """

    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None

    @property
    def code(self) -> int:
        """The exit code; negative where a signal ended it, other than its own alarm."""
        code = self.process.wait()
        return PEER_LOST if code and code == _ALARM else code

    def tell(self, word: bytes) -> None:
        """Write a word to it, or close its standard input with none."""
        pipe = self.process.stdin
        assert pipe is not None
        with suppress(OSError, ValueError):  # it has ended, or the pipe is closed
            if word:
                os.write(pipe.fileno(), word)
            else:
                pipe.close()

    def said(self) -> str:
        """Return what it wrote to standard error."""
        if self.errors is None:
            return ""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LINES:])


class _Crew:
    """The processes of a run, from the first one's start to the last one's end."""

    def __init__(self, command: Sequence[str], processes: int, files: ExitStack) -> None:
        self._command, self._files = command, files
        self._size, self._port = processes, _port()
        self._workers: list[_Worker] = []
        self._word = b""
        self._queue: SimpleQueue[_Worker] = SimpleQueue()
        self._ended: list[_Worker] = []

    def start(self) -> None:
        """Start all of them."""
        for rank in range(self._size):
            errors = self._files.enter_context(tempfile.TemporaryFile()) if rank else None  # noqa: SIM115 (closed with `files`)
            process = subprocess.Popen(
                self._command,
                env=_environment(rank, self._size, self._port),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if rank else None,
                stderr=errors,
            )
            worker = _Worker(rank, process, errors)
            self._workers.append(worker)
            if self._word:
                worker.tell(self._word)
            threading.Thread(target=self._watch, args=(worker,), daemon=True).start()

    def _watch(self, worker: _Worker) -> None:
        worker.process.wait()
        self._queue.put(worker)

    def tell(self, again: bool) -> None:
        """Ask all to stop, or to end at once if they were asked before."""
        self._word = END if again else STOP
        for worker in self._workers:
            worker.tell(self._word)

    def wait(self) -> None:
        """Wait until all have ended well, or one has not; then for the others to notice, but not for long."""
        while len(self._ended) < self._size and not any(worker.code for worker in self._ended):
            self._wait_for_one(None)
        if any(worker.code == _STOPPED for worker in self._ended):
            self._wait_for_all(SAVING_SECONDS)

    def end(self) -> None:
        """End those that are left: they are asked to by closing their standard input, and killed if they do not."""
        for worker in self._workers:
            worker.tell(b"")
        self._wait_for_all(GRACE_SECONDS + 2)
        for worker in self._workers:
            worker.process.kill()
        self._wait_for_all(None)

    def _wait_for_all(self, seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        while len(self._ended) < len(self._workers):
            if not self._wait_for_one(deadline):
                return

    def _wait_for_one(self, deadline: float | None) -> bool:
        """Wait for another one to end; return whether one has."""
        while True:
            with suppress(Empty):
                # in short pieces: Windows hears no Ctrl-C while it waits
                self._ended.append(self._queue.get(timeout=POLL_SECONDS))
                return True
            if deadline is not None and time.monotonic() > deadline:
                return False

    def explain(self, *, stopped: bool) -> int:
        """Say what ended the run if the first process did not; return the exit code.

        Args:
            stopped: whether the launcher was asked to stop.
        """
        codes = {worker.rank: worker.code for worker in self._ended}
        failed = [worker for worker in self._ended if worker.code not in (0, _STOPPED, PEER_LOST, *_ASKING)]
        failed.sort(key=lambda worker: worker.code == -signal.SIGABRT)  # NCCL aborts where it has waited in vain
        if codes[0] in (0, _STOPPED) or (codes[0] in (1, 2) and not any(worker.code < 0 for worker in failed)):
            return codes[0]  # it has said how the run ended
        if not failed and (stopped or set(codes.values()) & {_STOPPED, *_ASKING}):
            print("stopped; --resume continues from the last checkpoint, if there is one", file=sys.stderr)
            return _STOPPED
        lost = [worker for worker in self._ended if worker.rank]
        first = (failed or lost)[0]
        print(_last_words(first, self._size), file=sys.stderr)
        return first.code if first.code in (1, 2) else UserError.exit_code


def _last_words(worker: _Worker, size: int) -> str:
    """Return what a process said that ended by itself, or what a signal did to it."""
    name, said = f"the process of rank {worker.rank}, of {size},", worker.said()
    if worker.code >= 0:
        return f"{said}\n    said {name}" if said else f"error: {name} ended with exit code {worker.code} and no word"
    number = -worker.code
    title = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    remedy = "it is a fault in a library or the machine; what it said is above"
    if number == getattr(signal, "SIGKILL", 9):
        remedy = (
            "the system does that when memory runs out: lower training.per_device_train_batch_size, set "
            "training.gradient_checkpointing: true, or start fewer processes"
        )
    way_on = "--resume continues from the last checkpoint, if there is one"
    return f"{said}\nerror: {name} was ended by {title}\n    {remedy}\n    {way_on}".lstrip()


def _environment(rank: int, size: int, port: str) -> dict[str, str]:
    """Return the environment of one process; what another launcher said does not count."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    # the processes share the cores: with a thread for every core in each of them, all would be slower
    kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    return {
        **kept,
        LAUNCHED: "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _port() -> str:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
