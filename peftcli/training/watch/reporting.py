"""What a run tells whoever watches it: the record of a step, and the protocol of a watcher. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from peftcli.record.run_summary import Summary


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as the screen shows it.

    `loss`, `grad_norm` and `tokens_per_second` are measured over the steps since the last logged one and are None in
    between: reading them from the device at every step would make the device wait.

    Args:
        step, total_steps: optimizer steps, from 1.
        epoch: passes over the training rows so far, fractional.
        learning_rate: of the first parameter group, at this step.
        tokens: non-padding tokens seen since the start of the run.
        seconds_left: estimate, None until a step was measured.
    """

    step: int
    total_steps: int
    epoch: float
    learning_rate: float
    tokens: int
    loss: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    @property
    def logged(self) -> bool:
        """Whether this step is a line of metrics.jsonl."""
        return self.loss is not None


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
