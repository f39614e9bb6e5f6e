"""The live view of a run on a terminal: a panel, then lines above a progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.status import Status
from rich.table import Table

from peftcli.console.terminal import spinner_for
from peftcli.record.shown_numbers import count, duration

if TYPE_CHECKING:
    from rich.console import Console

    from peftcli.progress import Stage
    from peftcli.record.callback import StepRecord


class LiveView:
    """Draws on one console; the bar appears with the first step and stays below every line printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", style="cyan"),
            console=console,
            refresh_per_second=5,  # each redraw costs a few milliseconds of the core that trains
            expand=True,
        )
        self._status: Status | None = None
        self._task: TaskID | None = None
        self._numbers = ""
        self._loss: float | None = None
        self._speed: float | None = None

    def header(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Draw the facts of the run in a panel."""
        self._waited()
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold")
        grid.add_column(overflow="fold")
        for label, text in rows:
            grid.add_row(label, escape(text))
        self._console.print(
            Panel(grid, title=f"[bold cyan]{escape(title)}[/]", title_align="left", box=box.ROUNDED, expand=False)
        )
        self.waiting("first step")

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def waiting(self, text: str) -> None:
        """Draw what is being waited for beside a spinner, until the next part of the screen replaces it."""
        if self._status is None:
            self._status = self._console.status(text, spinner=spinner_for(self._console), refresh_per_second=5)
            self._status.start()
        self._status.update(text)

    def preparing(self, rows: int) -> None:
        """Draw how many rows are tokenised so far."""
        self.waiting(f"preparing data: {count(rows)} rows")

    def show(self, stage: Stage | None) -> None:
        """Draw a stage: beside the spinner before the first step, in place of the bar's numbers later."""
        done = "" if stage is None or not stage.total else f" {stage.done:,}/{stage.total:,}"
        if self._task is not None:
            text = self._numbers if stage is None else f"{stage.text}{done}"
            self._progress.update(self._task, numbers=text)
        elif stage is not None and self._status is not None and not (stage.done and not stage.total):
            self.waiting(f"{stage.text}{done}")

    def _waited(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def step(self, record: StepRecord) -> None:
        """Move the bar; numbers that were not measured at this step stay as they were."""
        if self._task is None:
            self._waited()
            self._task = self._progress.add_task("", total=record.total_steps, numbers="")
            self._progress.start()
        self._loss = self._loss if record.loss is None else record.loss
        self._speed = self._speed if record.tokens_per_second is None else record.tokens_per_second
        numbers = [
            "" if self._loss is None else f"loss {self._loss:.4f}",
            f"lr {record.learning_rate:.1e}",
            "" if self._speed is None else f"{self._speed:,.0f} tokens/s",
            "" if record.seconds_left is None else f"{duration(record.seconds_left)} left",
        ]
        self._numbers = "  ".join(part for part in numbers if part)
        self._progress.update(self._task, completed=record.step, numbers=self._numbers)

    def close(self) -> None:
        """Stop redrawing and leave the last state of the bar on the screen."""
        self._waited()
        self._progress.stop()
