"""What this program sets of the whole process: only here.

What stays set (the C library's allocator, environment variables) is for the command line, whose process it is. What a
library call needs for a while is a context here, which puts back what it found. Random numbers are the same
question for generators; see `record.random_state`; handlers of signals are in `stop_signals`. Two things stay behind a
run: torch's process group among several processes, and the attention function that prefix tuning registers with
transformers under a name of its own.
"""

from __future__ import annotations

import atexit
import csv
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# --- for the command line -------------------------------------------------------------------------------------------

_OPTIONS = {"TRIM_THRESHOLD": -1, "TOP_PAD": -2, "MMAP_THRESHOLD": -3}  # malloc.h
KEPT_MEMORY = {
    "MMAP_THRESHOLD": 1 << 30,  # larger blocks are mapped and given back as before
    "TRIM_THRESHOLD": 2**31 - 1,  # at the top of the heap; mallopt takes a C int
    "TOP_PAD": 64 * 2**20,  # grown by at once
}
"""What a run on a CPU tells glibc, in bytes; the environment can tell it the same as `MALLOC_TRIM_THRESHOLD_` etc."""


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory between the steps of a run on a CPU; return whether it can be told so.

    glibc gives large blocks back to the system as soon as they are free, and every step then takes the same memory
    anew, page by page (a page fault for each 4 KiB, a tenth of a float32 step). Keeping it costs nothing at the peak;
    between peaks the process holds what it held there. Other C libraries and systems are left as they are, and so are
    thresholds in the environment (MALLOC_TRIM_THRESHOLD_, ...). glibc has no way to put its thresholds back.
    """
    import ctypes

    if not freed_memory_can_stay():
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(_OPTIONS[name], value) == 1 for name, value in KEPT_MEMORY.items())


def freed_memory_can_stay() -> bool:
    """Return whether `keep_freed_memory` does anything in this environment."""
    import platform

    return platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ)


def quiet_profiler() -> None:
    """Keep the profiler's own messages off the terminal, unless the user asks for them; before torch is imported."""
    for name, level in (("KINETO_LOG_LEVEL", "99"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, level)


def quiet_exit() -> None:
    """Show nothing of what fails while the interpreter ends: without memory, what libraries do there fails, too."""
    sys.unraisablehook = lambda _what: None


def quick_exit() -> None:
    """Let the interpreter end without a search through all objects of the libraries for garbage (2 s with torch).

    What libraries say then of objects that were not freed is not shown (triton beside torch 2.15: twenty lines).
    """
    atexit.register(_end_unsearched)


def _end_unsearched() -> None:
    gc.freeze()
    if sys.__stderr__ is not None:
        with suppress(OSError, ValueError):  # closed, or a full disk
            sys.__stderr__.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno())


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


@contextmanager
def large_imports() -> Iterator[None]:
    """Import large libraries without a search for garbage among what they make, now and later.

    What they make stays until the end. Python looks through it again and again while it grows, which is a tenth of the
    time of importing torch and transformers; put aside (`gc.freeze`), it is left out of later searches, too. Where all
    was imported before, nothing is put aside: it would be the caller's.
    """
    collects, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
        if len(sys.modules) > known:
            gc.freeze()
    finally:
        if collects:
            gc.enable()


class libraries_quiet:  # reads as a statement: `with libraries_quiet():`
    """A context without messages of libraries that a user can do nothing about.

    bitsandbytes tells of optional kernels that are missing, and of every cast of an 8-bit layer. A CUDA build of torch
    that compiles blocks tells where there is no GPU which CUDA_HOME it would use. transformers warns of
    padding without a mask, which the causal task leaves out on purpose, and of a cache that it leaves out where
    activations are recomputed. FSDP2 warns of blocks that return views (T5's): nothing here or in transformers writes
    into them.
    """

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        self._loggers = [logging.getLogger(name) for name in ("bitsandbytes", "torch.utils.cpp_extension")]
        self._filtered = [
            each
            for name in ("modeling_utils", "modeling_layers", "utils.generic")
            if _is_news not in (each := logging.getLogger(f"transformers.{name}")).filters
        ]
        self._levels = [each.level for each in self._loggers]
        for each in self._loggers:
            each.setLevel(logging.ERROR)
        for each in self._filtered:
            each.addFilter(_is_news)

    def __exit__(self, *_error: object) -> None:
        self._warnings.__exit__(None, None, None)
        for each, level in zip(self._loggers, self._levels, strict=True):
            each.setLevel(level)
        for each in self._filtered:
            each.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (
        text.startswith("We strongly recommend passing in an `attention_mask`")
        or "incompatible with gradient checkpointing" in text
    )


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
def quiet_elastic() -> Iterator[None]:
    """Keep what torch's launcher logs off the terminal: the processes themselves say what a user needs."""
    logger, handler = logging.getLogger("torch.distributed.elastic"), logging.NullHandler()
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


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


@contextmanager
def environment_without(names: tuple[str, ...], values: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hide environment variables inside, and set others; what is set inside is put back, too.

    Args:
        names: of the variables to hide, or how they begin.
        values: of variables to set.
    """
    with environment_kept():
        for name in [name for name in os.environ if name.startswith(names)]:
            del os.environ[name]
        os.environ.update(values or {})
        yield


class CellsOfAnySize:
    """A context in which the csv module reads long documents; its own limit is 128 kB a cell.

    A class, since it is entered for every row of a file.

    Args:
        most: characters of a cell.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    def __enter__(self) -> None:
        self._before = csv.field_size_limit(self._most)

    def __exit__(self, *_error: object) -> None:
        csv.field_size_limit(self._before)
