"""What a command is at, on one line of a terminal that goes away at the end; nothing in a pipe, a file or a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from peftcli.progress import Stage, watched_by

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

P = ParamSpec("P")
T = TypeVar("T")

STARTING = "starting"
"""What is shown until the library says more: torch takes seconds to import."""


class ProgressBar:
    """Shows the stage that is under way; a `progress.Watcher`."""

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._task: TaskID = drawn.add_task(STARTING, total=None, numbers="")
        self._stage: Stage | None = None

    def show(self, stage: Stage | None) -> None:
        """Draw a stage; between two of them, what was done last."""
        if stage is None:
            return
        numbers = ""
        if stage.total:
            numbers = f"{stage.done:,}/{stage.total:,}"
        elif stage.done:
            numbers = f"{stage.done:,} {stage.unit}"
        if stage is not self._stage:
            self._stage = stage
            self._drawn.reset(self._task, total=stage.total, description=stage.text, numbers=numbers)
        self._drawn.update(self._task, total=stage.total, completed=stage.done, numbers=numbers)

    def close(self) -> None:
        """Take the line away: the result follows."""
        self._drawn.stop()


class _Unseen:
    """Nobody looks."""

    def show(self, stage: Stage | None) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


def with_progress(command: Callable[P, T]) -> Callable[P, T]:
    """Return a command that shows its stages until its result is printed; with `--json` it shows none."""

    @wraps(command)
    def shown(*args: P.args, **kwargs: P.kwargs) -> T:
        quiet = any(bool(kwargs.get(name)) for name in ("as_json", "quiet"))
        with progress_shown(quiet=quiet):
            return command(*args, **kwargs)

    return shown


@contextmanager
def progress_shown(*, quiet: bool = False) -> Iterator[ProgressBar | _Unseen]:
    """Show the stages of what is done inside on standard error, if that is a terminal.

    Args:
        quiet: show nothing, as for `--json`.
    """
    if quiet or not sys.stderr.isatty():
        yield _Unseen()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from peftcli.console.terminal import safe_console, spinner_for

    console = safe_console(stderr=True)
    if console.is_dumb_terminal:
        yield _Unseen()
        return
    drawn = Progress(
        SpinnerColumn(spinner_for(console)),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, pulse_style="bar.back"),
        TextColumn("{task.fields[numbers]}", markup=False, style="cyan"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # results go where the caller sent them
        refresh_per_second=5,
        expand=True,
    )
    bar = ProgressBar(drawn)
    with drawn, watched_by(bar):
        yield bar
