"""What a callback of another package is, and what it is told of a run. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.recipe.entry_points import plugin
from peftcli.record.run_summary import Summary


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as the screen shows it.

    `loss`, `grad_norm` and `tokens_per_second` are measured over the steps since the last logged one and are None in
    between: reading them from the device at every step would make the device wait.

    Args:
        step, total_steps: optimizer steps, from 1.
        epoch: passes over the training rows so far, fractional.
        learning_rate: of the parameters without a rate of their own (`lr_groups`, a head, LoRA+), at this step.
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


@dataclass(frozen=True)
class WatchedRun:
    """What a callback is told of its run.

    Args:
        directory: of the run.
        recipe: with every default filled in; references to variables of the environment are left as they are written.
        first_step: steps that were taken before, by the part of the run that was interrupted; 0 for a new run.
        total_steps: optimizer steps of the whole run.
    """

    directory: Path
    recipe: Mapping[str, Any]
    first_step: int
    total_steps: int


class Callback:
    """Watches a run; override what you need. One object is made for each run, without arguments, in its main process.

    A callback that raises is told about and gets nothing more; the run goes on. Two runs of one recipe stay equal bit
    for bit as long as it takes no random numbers of Python, NumPy or torch.
    """

    def begin(self, run: WatchedRun) -> None:
        """Do what is due before the first step."""

    def step(self, record: StepRecord) -> None:
        """See that a step was taken; every one, before a due evaluation."""

    def evaluation(self, metrics: Mapping[str, Any]) -> bool | None:
        """See the metrics of an evaluation, with `step`, `epoch` and `best`; return True to end the run here.

        The run then ends as after early stopping: the best adapter is kept, and it is finished.
        """
        return None

    def end(self, summary: Summary | None) -> None:
        """See how the run ended; None where it was stopped, or failed."""


def find_callback(name: str) -> type[Callback] | None:
    """Return the class of a callback that an installed package offers, None if there is none.

    Raises:
        UserError: the package cannot be imported, or holds something else.
    """
    found = plugin("callback", name, ())
    if found is None:
        return None
    held = found.held("CALLBACK")
    if not isinstance(held, type) or not issubclass(held, Callback):
        raise found.wrong("ends in no CALLBACK that is a subclass of peftcli.record.callback.Callback")
    return held
