"""What is measured while training: losses, tokens, times."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from peftcli.record.callback import StepRecord
from peftcli.tasks.task import Batch
from peftcli.training.session import Session
from peftcli.training.watch.finite import FiniteWatch
from peftcli.training.watch.processor_waits import ProcessorWaits


class Meter:
    """Losses, rates and times, kept on the device and read only at logged steps: reading waits for the device."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loss = torch.zeros((), device=session.world.device)
        self._loss += session.state.window.get("loss_sum", 0.0)
        self._started = 0.0
        self._waits = ProcessorWaits(torch.get_num_threads() if session.world.device.type == "cpu" else 1)
        self.finite = FiniteWatch(session.world, norms=not session.precision.scaled)

    def freeze(self) -> None:
        """Put what is on the device into the state, for a checkpoint."""
        self._session.state.window["loss_sum"] = float(self._loss)

    def start_step(self) -> None:
        """Start the clock of a step, and the bound on it that `World.watch` sets."""
        self._session.world.watch.begin(f"step {self._session.state.step + 1}")
        self._started = time.perf_counter()

    def add(self, loss_sum: Tensor, batch: Batch) -> None:
        """Count a micro-batch."""
        state = self._session.state
        self._loss += loss_sum.detach()
        for key, value in (("count", batch.count), ("tokens", batch.tokens), ("supervised", batch.supervised)):
            state.window[key] = state.window.get(key, 0.0) + value

    def see(self, norm: Tensor) -> None:
        """Look at the loss and the gradient of a step that is about to be taken.

        Raises:
            UserError: one is not finite, and asking does not slow the device down.
        """
        self.finite.see(self._loss, norm, self._session.state.step + 1)

    def settle(self) -> None:
        """Wait for what the device still computes of the steps so far; that time is theirs, not an evaluation's."""
        before = time.perf_counter()
        float(self._loss)
        self._count_time_since(before)

    def _count_time_since(self, start: float) -> None:
        seconds, window = time.perf_counter() - start, self._session.state.window
        self._session.state.step_seconds += seconds
        window["seconds"] = window.get("seconds", 0.0) + seconds

    def close(self) -> None:
        """Count the steps since the last logged one, where a run ended between two (early stopping)."""
        if any(self._session.world.gather(bool(self._session.state.window))):
            self._empty_window()

    def finish_step(self, norm: Tensor) -> None:
        """Record a step: a line of metrics.jsonl at logged ones, progress at every one."""
        session, state = self._session, self._session.state
        spec, plan = session.recipe.training, session.plan
        logged = state.step % spec.logging_steps == 0 or state.step in (1, plan.total_steps)
        self._count_time_since(self._started)
        record = self._logged(norm) if logged else self._record()
        if logged:
            line = {key: value for key, value in vars(record).items() if key not in ("total_steps", "seconds_left")}
            session.append_metrics({**line, "time": round(time.time(), 3)})
        session.world.watch.end()
        if session.world.is_main:
            if (note := self._waits.note()) is not None:
                session.reporter.note(note)
            session.reporter.step(record)
            session.callbacks.step(record)

    def _record(self, **measured: float) -> StepRecord:
        session, state = self._session, self._session.state
        left = (session.plan.total_steps - state.step) * state.step_seconds / max(1, state.step)
        return StepRecord(
            step=state.step,
            total_steps=session.plan.total_steps,
            epoch=round(state.step / session.plan.steps_per_epoch, 4),
            learning_rate=session.learning_rate.value * session.rate_factor(state.step - 1),
            tokens=state.tokens + int(state.window.get("tokens", 0)),
            seconds_left=left,
            **measured,
        )

    def _logged(self, norm: Tensor) -> StepRecord:
        """Read the device and empty the window."""
        self.settle()
        self.finite.check()
        seconds = self._session.state.window["seconds"]
        loss, tokens = self._empty_window()
        rate = tokens / seconds if seconds else 0.0
        return self._record(loss=loss, grad_norm=float(norm), tokens_per_second=round(rate, 1))

    def _empty_window(self) -> tuple[float, float]:
        """Add the window, over all processes, to the run's sums; return its mean loss and its tokens."""
        session, state, window = self._session, self._session.state, self._session.state.window
        exact = torch.float32 if session.world.device.type == "mps" else torch.float64  # float32 counts to 16.7 million
        tokens_seen = torch.tensor([window.get(key, 0.0) for key in ("tokens", "supervised")], dtype=exact)
        own = torch.cat([torch.tensor([float(self._loss), window.get("count", 0.0)]).to(exact), tokens_seen])
        total, count, tokens, supervised = session.world.sum(own.to(session.world.device)).tolist()
        state.loss_sum, state.loss_count = state.loss_sum + total, state.loss_count + count
        state.tokens, state.supervised_tokens = state.tokens + int(tokens), state.supervised_tokens + int(supervised)
        state.window = {}
        self._loss.zero_()
        return (total / count if count else 0.0), tokens
