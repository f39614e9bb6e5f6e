"""A bar for what is written: drawn on a terminal from the second second on, and a line at times elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from peftcli.console.terminal import safe_console
from peftcli.record.shown_numbers import byte_size

_WAIT = 1.0
"""Seconds without a bar."""
_LINE_EVERY = 10.0
"""Seconds between lines where nothing can be redrawn."""


@contextmanager
def bytes_bar(text: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that receives how many bytes of how many are written.

    Args:
        text: what is done, such as `writing out`.
        quiet: draw nothing.
    """
    if quiet:
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = safe_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[size]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, refresh_per_second=5)
    task = bar.add_task(text, total=None, size="")
    started = told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        size = f"{byte_size(done)} of {byte_size(total)}"
        bar.update(task, completed=done, total=total, size=size)
        if console.is_terminal and now - started > _WAIT:
            bar.start()
        elif not console.is_terminal and now - told > _LINE_EVERY:
            told = now
            print(f"{text}: {size}", file=sys.stderr)

    try:
        yield progress
    finally:
        bar.stop()
