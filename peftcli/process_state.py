"""What this program sets of the whole process: only here.

What stays set (the C library's allocator, environment variables) is for the command line, whose process it is. What a
library call needs for a while is a context here, which puts back what it found. Random numbers are the same
question for generators; see `record.random_state`. Two things stay behind a run: torch's process group among several
processes, and the attention function that prefix tuning registers with transformers under a name of its own.
"""

from __future__ import annotations

import _thread
import atexit
import csv
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

# --- for the command line -------------------------------------------------------------------------------------------

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 1 << 30  # larger ones are mapped and given back as before
_KEPT = 2**31 - 1  # bytes at the top of the heap; mallopt takes a C int
_TOP_PAD = 64 * 2**20  # grown by at once


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory between the steps of a run on a CPU; return whether it can be told so.

    glibc gives large blocks back to the system as soon as they are free, and every step then takes the same memory
    anew, page by page (a page fault for each 4 KiB, a tenth of a float32 step). Keeping it costs nothing at the peak;
    between peaks the process holds what it held there. Other C libraries and systems are left as they are, and so are
    thresholds in the environment (MALLOC_TRIM_THRESHOLD_, ...). glibc has no way to put its thresholds back.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    options = {_M_MMAP_THRESHOLD: _LARGEST_BLOCK, _M_TRIM_THRESHOLD: _KEPT, _M_TOP_PAD: _TOP_PAD}
    return all(libc.mallopt(option, value) == 1 for option, value in options.items())


def quiet_profiler() -> None:
    """Keep the profiler's own messages off the terminal, unless the user asks for them; before torch is imported."""
    for name, level in (("KINETO_LOG_LEVEL", "99"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, level)


def become_encoder() -> None:
    """Make this process a worker that encodes rows: it leaves Ctrl-C to its parent, and takes one thread.

    It ends with its parent, however that ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent says what it left
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    end_with_parent()


def end_with_parent() -> None:
    """End this process, which `multiprocessing` started, as soon as its parent has ended, also by SIGKILL."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()  # waits at a pipe whose other end the parent holds
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def run_at_end(action: Callable[[], None]) -> None:
    """Run an action when this process ends: by itself, after an error or Ctrl-C, or by SIGTERM.

    Processes that are forked from it do not run it.
    """
    owner = os.getpid()

    def run() -> None:
        if os.getpid() == owner:
            action()

    def handle(number: int, _frame: FrameType | None) -> None:
        run()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    atexit.register(run)
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # who has a handler ends the program in order
        signal.signal(signal.SIGTERM, handle)


# --- for a while -----------------------------------------------------------------------------------------------------


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Multiply float32 matrices with torch's `highest` or `high` (TF32 on CUDA) precision inside."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def compiler_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Trace with these settings of `torch._dynamo.config` inside; those that this version of torch lacks are left out.

    Args:
        settings: by name; none imports nothing.
    """
    if not settings:
        yield
        return
    import torch._dynamo

    config = torch._dynamo.config
    with config.patch({name: value for name, value in settings.items() if hasattr(config, name)}):
        yield


class libraries_quiet:  # reads as a statement: `with libraries_quiet():`
    """A context without messages of libraries that a user can do nothing about.

    bitsandbytes tells of optional kernels that are missing, and of every cast of an 8-bit layer. transformers warns of
    padding without a mask, which the causal task leaves out on purpose.
    """

    def __enter__(self) -> None:
        self._bitsandbytes = logging.getLogger("bitsandbytes")
        self._transformers = logging.getLogger("transformers.modeling_utils")
        self._level, self._found = self._bitsandbytes.level, _is_news in self._transformers.filters
        self._bitsandbytes.setLevel(logging.ERROR)
        self._transformers.addFilter(_is_news)

    def __exit__(self, *_error: object) -> None:
        self._bitsandbytes.setLevel(self._level)
        if not self._found:
            self._transformers.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("We strongly recommend passing in an `attention_mask`")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report and progress bars off the terminal: what they say is in `Loaded.notes`."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as messages

    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()  # the hub client's, too
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()
        if not hub_bars:
            disable_progress_bars()


@contextmanager
def environment_kept() -> Iterator[None]:
    """Put back the environment variables that a library sets inside."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class CellsOfAnySize:
    """A context in which the csv module reads long documents; its own limit is 128 kB a cell.

    A class, since it is entered for every row of a file.
    """

    _LIMIT = 2**31 - 1

    def __enter__(self) -> None:
        self._before = csv.field_size_limit(self._LIMIT)

    def __exit__(self, *_error: object) -> None:
        csv.field_size_limit(self._before)


SAME_REQUEST = 1.0
"""Seconds in which any number of signals are one request: systemd, Slurm and a terminal signal each process of a group,
and launchers pass on what they get besides."""


class StopRequest:
    """Whether somebody asked this process to stop, by whatever signals."""

    _launched: ClassVar[bool] = False
    _at_once: ClassVar[bool] = False

    def __init__(self) -> None:
        self.requested = False
        self._at = 0.0

    @classmethod
    def from_launcher(cls, *, at_once: bool) -> None:
        """Ask this process to stop because its launcher says so; from any thread.

        From then on, the launcher alone tells a second request from the first one that arrives late.

        Args:
            at_once: without saving anything.
        """
        cls._launched, cls._at_once = True, cls._at_once or at_once
        if os.name == "nt":
            _thread.interrupt_main(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def again(self) -> bool:
        """Take note of a signal; return whether it is another request than the one that is known."""
        now = time.monotonic()
        if not self.requested:
            self.requested, self._at = True, now
            return self._at_once
        return self._at_once if self._launched else now - self._at >= SAME_REQUEST


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yield a request that SIGINT, SIGTERM and SIGHUP set; the handlers of before are back afterwards.

    The first signal is a request, as are those that come with it; a later one acts as it would have without us.
    """
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.again():
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    with _handled(handle) as before:
        yield request


@contextmanager
def interrupted_by_signals() -> Iterator[StopRequest]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP as at Ctrl-C inside, once for each request; yield the first.

    A second signal of the same request does not disturb what the first one made the program tidy up. Ctrl-C counts even
    where a shell starts a command in the background without job control, and has it ignored.
    """
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        known = request.requested
        if request.again() or not known:
            raise KeyboardInterrupt

    with _handled(handle):
        yield request


@contextmanager
def requests_passed_on(tell: Callable[[bool], None]) -> Iterator[StopRequest]:
    """Call `tell` for each request to stop inside; with True for all but the first. Nothing else happens."""
    request = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        known = request.requested
        if (again := request.again()) or not known:
            tell(again)

    with _handled(handle):
        yield request


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[dict[signal.Signals, Any]]:
    """Handle the signals that ask to stop; yield the handlers of before, which are back afterwards.

    Signals reach the main thread only; elsewhere nothing is installed. Windows delivers SIGINT (Ctrl-C) alone. A
    process that was started to outlive its terminal (`nohup`) ignores SIGHUP, and goes on doing so.
    """
    before: dict[signal.Signals, Any] = {}
    names = [signal.SIGINT, signal.SIGTERM]
    if os.name != "nt" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        names.append(signal.SIGHUP)
    try:
        if threading.current_thread() is threading.main_thread():
            for name in names:
                before[name] = signal.getsignal(name)
                signal.signal(name, handle)
        yield before
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
