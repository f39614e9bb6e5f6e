"""A comparison or a sweep at work: plan, phase, which trial of how many, its last score, the time that is left."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from peftcli.console.terminal import safe_console, spinner_for
from peftcli.record.shown_numbers import count, duration, metric
from peftcli.studies.compare.budget.length_plan import StudyPlan
from peftcli.studies.compare.trial_results import final_score
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult

if TYPE_CHECKING:
    from types import TracebackType

    from rich.status import Status

RATE = "training.learning_rate"


class StudyDisplay:
    """The watcher of the command line: lines that stay, and on a terminal one line that moves below them.

    A context manager, so that an error leaves the terminal in order.

    Args:
        metric: whose last value is shown.
        quiet: show nothing.
    """

    def __init__(self, metric: str, *, quiet: bool = False) -> None:
        self._metric, self._quiet = metric, quiet
        self._done = self._trials = 0
        self._ends: float | None = None
        self._running: dict[str, str] = {}
        self._title = ""
        self._status: Status | None = None
        console = safe_console(stderr=True)
        self._console = console if console.is_terminal and not console.is_dumb_terminal and not quiet else None

    def __enter__(self) -> StudyDisplay:
        if self._console is not None:
            self._status = self._console.status("", spinner=spinner_for(self._console), refresh_per_second=5)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def note(self, text: str) -> None:
        """Show one sentence."""
        self._line(f"note: {text}")

    def planned(self, plan: StudyPlan, left: float | None) -> None:
        """Show the trials, their steps and the time that they are expected to take."""
        shortened = f" of the {count(plan.full_steps)} that the recipes ask for"
        steps = f"{count(plan.score.steps)} steps{shortened if plan.score.steps < plan.full_steps else ''}"
        search = f"{plan.rates} learning rates of {count(plan.search.steps)} steps, then " if plan.rates else ""
        seeds = f"{plan.seeds} seed{'s' if plan.seeds > 1 else ''} of {steps}"
        budget = "" if left is None else f"; {duration(left)} are left of the budget"
        self._line(f"plan: {len(plan.methods)} methods, each {search}{seeds}: {plan.trials} runs")
        self._line(f"      about {duration(plan.seconds)}, judging by a few steps of each method{budget}")

    def phase(self, title: str, trials: int, seconds: float | None) -> None:
        """Show that a phase begins."""
        self._title, self._trials, self._done = title, trials, 0
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._line(f"{title}: {trials} run{'s' if trials != 1 else ''}{self._left()}")

    def started(self, trial: Trial) -> None:
        """Show that a trial starts."""
        self._running[trial.name] = f"{trial.group}{self._about(trial)}"
        self._move()

    def progressed(self, trial: Trial, step: int, total_steps: int) -> None:
        """Show how far a trial is."""
        self._running[trial.name] = f"{trial.group}{self._about(trial)} step {step}/{total_steps}"
        self._move()

    def evaluated(self, trial: Trial, point: CurvePoint) -> None:
        """Show the last score of a trial."""
        value = point.metrics.get(self._metric)
        self._running[trial.name] = (
            f"{trial.group}{self._about(trial)} step {point.step}: {metric(self._metric, value)}"
        )
        self._move()

    def ended(self, trial: Trial, result: TrialResult) -> None:
        """Show how a trial ended, on a line that stays."""
        self._running.pop(trial.name, None)
        self._done += 1
        score = final_score(result, self._metric)
        said = f"{self._metric} {metric(self._metric, score)}" if score is not None else ""
        if result.state != "finished":
            said = f"{result.state} {said}{f' ({result.reason})' if result.reason else ''}".replace("  ", " ")
        self._line(
            f"{self._done}/{self._trials} {trial.group}{self._about(trial)}: {said} "
            f"in {duration(result.seconds)}{self._left()}"
        )
        self._move()

    def _about(self, trial: Trial) -> str:
        """Return the rate and the seed of a trial, where they are its own and its group does not name them."""
        values = dict(text.split("=", 1) for text in trial.overrides)
        rate, seed, shown = values.get(RATE), values.get("seed"), ""
        with suppress(ValueError):  # `null` is the method's default
            shown = f", rate {float(rate):g}" if rate is not None and RATE not in trial.group else ""
        return f"{shown}, seed {seed}" if seed is not None else shown

    def _left(self) -> str:
        if self._ends is None:
            return ""
        return f", about {duration(max(0.0, self._ends - time.monotonic()))} left"

    def _move(self) -> None:
        from rich.text import Text

        if self._status is not None:
            running = "; ".join(self._running.values())
            text = f"{self._title}: {self._done}/{self._trials}  {running}{self._left()}"
            self._status.update(Text(text))  # brackets of a label or a value are no markup

    def _line(self, text: str) -> None:
        if self._quiet:
            return
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
