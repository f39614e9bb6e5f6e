"""What happens between steps: evaluations, the best adapter, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from peftcli.distributed.whole_tensors import whole_tree
from peftcli.errors import Problem, UserError
from peftcli.inference.evaluator import EvaluationStopped
from peftcli.record.checkpoint_adapter import ABOUT
from peftcli.record.checkpoints import Checkpoints
from peftcli.record.own_entries import ARTIFACTS
from peftcli.shown_text import some_of
from peftcli.stop_signals import StopRequest
from peftcli.training.adapter_record import adapter_record
from peftcli.training.best_value import judge, rises
from peftcli.training.session import Session
from peftcli.training.watch.finite import require_finite
from peftcli.training.watch.meter import Meter


class Milestones:
    """Evaluates and saves when it is time; only the main process writes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        spec = session.recipe.training
        self.checkpoints: Checkpoints = session.directory.checkpoints(spec.save_total_limit)
        self.meter = Meter(session)
        self._clock = time.perf_counter()
        self._saved_at: int | None = None
        self._finite_at: int | None = None
        self._about: dict[str, Any] | None = None

    def evaluate_first(self) -> None:
        """Evaluate before the first step, for the closing table, unless the recipe does without."""
        wanted = self.session.recipe.training.eval_on_start
        if wanted and self.session.validation and self.session.state.step == 0:
            self.session.state.eval_before = self.session.evaluate().metrics
            self._log({"step": 0, "epoch": 0.0, **self.session.state.eval_before})

    def evaluate_if_due(self, stop: StopRequest) -> None:
        """Evaluate at the recipe's interval and after the last step; keep the best, stop early.

        Args:
            stop: ends the evaluation; it stays due (`TrainState.evaluation_due`), in every process alike.
        """
        state, plan = self.session.state, self.session.plan
        interval = plan.eval_interval
        last = state.step >= plan.total_steps
        if self.session.validation and (last or (interval and state.step % interval == 0)):
            self._evaluate(stop)

    def _evaluate(self, stop: StopRequest) -> bool:
        """Evaluate, judge and record; return False if a stop breaks it off."""
        state, plan = self.session.state, self.session.plan
        self.meter.settle()
        self.require_finite("it was not evaluated")
        state.evaluation_due = True
        try:
            found = self.session.evaluate(stop)
        except EvaluationStopped:
            return False
        state.evaluation_due = False
        metrics = found.metrics
        line = {"step": state.step, "epoch": round(state.step / plan.steps_per_epoch, 4), **metrics}
        best = self._judge(metrics)
        self._log({**line, "best": best})
        self._ask_callbacks({**line, "best": best})
        self._keep_samples(found.samples)
        return True

    def _judge(self, metrics: dict[str, Any]) -> bool:
        """Compare with the best so far; return whether this is better."""
        state, spec = self.session.state, self.session.recipe.training
        name = spec.metric_for_best_model
        if name not in metrics:
            numbers = [key for key, value in metrics.items() if isinstance(value, float)]
            raise UserError(
                Problem(f"the evaluation gives no {name}", key="training.metric_for_best_model",
                        suggestion=f"choose from: {', '.join(numbers)}")
            )  # fmt: skip
        value = float(metrics[name])
        settled = self.session.attachment.settled(state.step, self.session.plan.total_steps)
        verdict = judge(
            value,
            state.best_value,
            greater=rises(spec),
            threshold=spec.early_stopping_threshold,
            settled=settled,
            best_settled=state.best_settled,
        )
        if verdict.counts:
            state.bad_evaluations = 0 if verdict.improved else state.bad_evaluations + 1
        if verdict.keep:
            state.best_settled = settled
            state.best_value, state.best_step = (None if math.isnan(value) else value), state.step
            state.best_metrics = metrics
            world = self.session.world
            tree = whole_tree({"adapter": self.session.attachment.state_dict()}, keep=world.is_main)
            if world.is_main:
                self.checkpoints.save_best(state.step, tree)
            world.wait()
        patience = spec.early_stopping_patience
        if patience is not None and state.bad_evaluations >= patience:
            state.done = state.stopped_early = True
        return state.best_step == state.step

    def catch_up(self, stop: StopRequest) -> bool:
        """Make up for the evaluation that a stop broke off; return False if another stop does so again."""
        state = self.session.state
        if state.evaluation_due and self.session.validation:
            if not self._evaluate(stop):
                return False
            self.save()  # the checkpoint of this step was written without it
        return True

    def save_if_due(self, *, at_once: bool = False) -> None:
        """Write a checkpoint at the recipe's interval, at the end, or because the user stops the run."""
        state, plan = self.session.state, self.session.plan
        due = plan.saves_at(state.step) or (state.done and plan.save_interval)
        if (due or at_once) and self._saved_at != state.step:
            self.save()

    def save(self) -> None:
        """Write everything that a resumed run needs.

        Raises:
            UserError: a loss, a gradient or a parameter is not finite; the checkpoints that are there stay.
        """
        self.meter.settle()
        self.require_finite("no checkpoint was written")
        self._saved_at = self.session.state.step
        self.tick()
        self.meter.freeze()
        windows = self.session.world.gather({"window": self.session.state.window})
        tree = self.session.checkpoint_tree(windows)
        if self.session.world.is_main:
            self._about = self._about or adapter_record(self.session).as_dict()
            self.checkpoints.save(self.session.state.step, {**tree, ABOUT: self._about})
            if self.session.data.skipped_of_stream:
                self.session.directory.write_skipped_rows(self.session.data.skipped_rows())
        self.session.world.wait()

    def require_finite(self, what: str) -> None:
        """Refuse to keep anything of a run whose numbers are not finite any more.

        Args:
            what: is not done, for the message.

        Raises:
            UserError: names the step, and the parameter if one holds such numbers.
        """
        session = self.session
        if self._finite_at == session.state.step:
            return
        self.meter.finite.check()
        require_finite(session.attachment.trainable_parameters(), session.state.step, session.world, what)
        self._finite_at = session.state.step

    def resume(self, tree: dict[str, Any]) -> None:
        """Go on from a checkpoint: state, weights, optimizer, method. Random numbers need no state."""
        self.session.load_checkpoint_tree(tree)
        world = self.session.world
        windows = [{key: float(value) for key, value in one["window"].items()} for one in tree["processes"]]
        if len(windows) != world.size:  # what all of them measured goes on in the main process
            windows = [_joined(windows), *({} for _ in range(1, world.size))]
        self.session.state.window = windows[world.rank]
        self.meter = Meter(self.session)
        self._saved_at = self.session.state.step
        if world.is_main:
            self._cut_lines()

    def _cut_lines(self) -> None:
        """Drop what an interrupted run wrote after its checkpoint; tell what is damaged or missing before it."""
        session, step = self.session, self.session.state.step
        for lines in (session.directory.metrics, session.directory.samples):
            if (damage := lines.cut(step)) is not None:
                session.reporter.note(damage)
        there = {line["step"] for line in session.directory.metrics.lines() if "loss" in line}
        every = session.recipe.training.logging_steps
        logged = [1, *range(every, min(step, session.plan.total_steps) + 1, every)]
        missing = [at for at in dict.fromkeys(logged) if at not in there]
        if missing:
            session.reporter.note(
                f"{session.directory.metrics.path} has no line of step {some_of(missing, 5)}: it was damaged"
            )

    def find_best(self) -> None:
        """Look whether the best adapter that a resumed run knows is whole, rather than when it ends.

        If it is lost, this is told, and the adapter of the checkpoint becomes the best so far.

        Raises:
            UserError: it is lost, and the run has written a result, which would be replaced by a worse one.
        """
        session, state = self.session, self.session.state
        if state.best_step is None:
            return
        lost = session.world.from_main(partial(self.checkpoints.find_best, state.best_step))
        if lost is None:
            return
        results = [path for name in ARTIFACTS if (path := session.directory.path / name).exists()]
        if results:
            remedy = (
                f"keep that result: move {results[0]} to another place, then --resume; or start again with --overwrite"
            )
            raise UserError(f"{lost}; a result of this run is in {results[0]}, and may be better", suggestion=remedy)
        session.reporter.note(
            f"{lost}: the best adapter so far (step {state.best_step}) is lost; the best one from step {state.step} on "
            "is kept"
        )
        state.best_value = state.best_step = state.best_metrics = None
        state.best_settled = False
        if session.validation:
            self._judge(session.evaluate().metrics)

    def tick(self) -> None:
        """Add the time since the last tick to the run's."""
        now = time.perf_counter()
        self.session.state.seconds += now - self._clock
        self._clock = now

    def _log(self, line: dict[str, Any]) -> None:
        self.session.append_metrics(line)
        if self.session.world.is_main:
            self.session.reporter.evaluation(line)

    def _ask_callbacks(self, line: dict[str, Any]) -> None:
        """Show them an evaluation; one of them may end the run, in every process."""
        session = self.session
        if not session.recipe.training.callbacks:
            return
        if session.world.from_main(lambda: session.callbacks.evaluation(line)):
            session.state.done = session.state.stopped_early = True

    def _keep_samples(self, own: list[dict[str, Any]]) -> None:
        """Store the generated samples of all processes and show the first."""
        shares = self.session.world.gather(own) if self.session.recipe.training.eval_generate else []
        rows = sorted((row for share in shares for row in share), key=lambda row: row["row"])
        if not rows or not self.session.world.is_main:
            return
        self.session.directory.samples.append(*({"step": self.session.state.step, **row} for row in rows))
        first = rows[0]
        self.session.reporter.note(f"sample: {_end_of(first['prompt'])} -> {_start_of(first['prediction'])}")


def _joined(windows: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums of all processes' windows; the seconds are those of the first, since they ran at once."""
    keys = dict.fromkeys(key for window in windows for key in window)
    sums = {key: sum(window.get(key, 0.0) for window in windows) for key in keys}
    return sums | {key: windows[0][key] for key in ("seconds",) if key in windows[0]}


_SAMPLE = 120
"""Characters of a sample's prompt and of its answer that are shown."""


def _end_of(text: str) -> str:
    """Return the end of a text on one line, from a word on: that of a prompt is the question."""
    text = " ".join(text.split())
    return text if len(text) <= _SAMPLE else f"... {text[-_SAMPLE:].partition(' ')[2]}"


def _start_of(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SAMPLE else f"{text[:_SAMPLE]}..."
