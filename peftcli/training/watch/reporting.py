"""What a run tells whoever shows it: the protocol of a watcher. No torch here."""

from __future__ import annotations

from typing import Any, Protocol

from peftcli.record.callback import StepRecord
from peftcli.record.run_summary import Summary


class Reporter(Protocol):
    """Who shows a run. Called on the main process only: notes and the header, steps and evaluations, `finished`."""

    def preparing(self, rows: int) -> None:
        """Show how many rows are tokenised so far; not called when they are in the cache."""
        ...

    def header(self, facts: dict[str, Any]) -> None:
        """Show what was decided before the first step.

        Keys, in order: model, task, method, rows, trainable, total, percent, device, precision, steps, epochs,
        batch, warmup_steps, learning_rate, output_dir; further ones may follow.
        """
        ...

    def note(self, text: str) -> None:
        """Show one sentence that the user should read."""
        ...

    def step(self, record: StepRecord) -> None:
        """Show that a step is done."""
        ...

    def evaluation(self, metrics: dict[str, Any]) -> None:
        """Show metrics; `step` and `epoch` are among them, and `best` when these are the best so far."""
        ...

    def finished(self, summary: Summary) -> None:
        """Show how the run ended."""
        ...


class Silent:
    """A reporter that shows nothing; what library callers and other processes use."""

    def preparing(self, rows: int) -> None: ...

    def header(self, facts: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def step(self, record: StepRecord) -> None: ...

    def evaluation(self, metrics: dict[str, Any]) -> None: ...

    def finished(self, summary: Summary) -> None: ...
