"""A trial: one ordinary run of a study, before and after it ran."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TrialState = Literal["finished", "stopped", "diverged", "failed", "refused"]
"""How a trial ended.

`finished` and `stopped` (by the study, before its last step: the worse half of a rate search, a pruned sweep trial)
have scores; `diverged` had a loss that is not finite; `failed` ended with an error of ours or was killed too often;
`refused` is the user's input: the method does not fit the model, the values do not fit the schema.
"""


@dataclass(frozen=True)
class Trial:
    """One run to make.

    Args:
        name: unique in its study and stable from one start of the command to the next; the directory below `trials/`,
            such as `lora-r8.rate-2e-03.seed-0`.
        recipe: path of the recipe's file below the study's directory (`recipes/NAME.yaml`, written once).
        overrides: `key=value` texts on top of it, as `peft train` takes them; `output_dir` is the engine's.
        fresh: train in a process of its own that was not forked from a warm one, so that its peak memory is its own.
        score_rows: after training, write each held-out row's score to `scores/NAME.json` (`inference.row_scores`).
        group: what belongs together, such as the method's label; `purpose` says what the trial is for within it.
        number: of the trial in Optuna's study, if `Study.optuna.ask()` made it; None lets the engine make one.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    fresh: bool = False
    score_rows: bool = False
    group: str = ""
    purpose: Literal["timing", "rate", "score", "sweep"] = "score"
    number: int | None = None


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation of a trial: the optimizer step, and `eval_*` metrics by name."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Args:
        name: the trial's.
        state: see `TrialState`.
        reason: one sentence for a person, if the state is not `finished`.
        run: its run directory, relative to the study's; None if there is none.
        summary: `summary.json` of the run as it is, or {} if it has none (a stopped run has what was known).
        curve: every evaluation, the one before the first step included, in order.
        peak_memory_bytes: of a fresh process; None where the process was forked from a warm one.
        seconds: from the start of its process to its end; `seconds_of_imports`: those before its own work began, next
            to none where the process was forked from a warm one.
        host: name of the machine that ran it.
    """

    name: str
    state: TrialState
    reason: str | None = None
    run: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    peak_memory_bytes: int | None = None
    seconds: float = 0.0
    seconds_of_imports: float = 0.0
    host: str = ""
