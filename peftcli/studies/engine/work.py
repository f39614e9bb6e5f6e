"""A worker: takes trials that nobody trains, runs their processes, and writes how they ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from peftcli.errors import Stopped, UserError
from peftcli.record.run_directory import RunDirectory
from peftcli.stop_signals import requests_passed_on
from peftcli.studies.engine.leases import HEARTBEAT, Lease, Leases
from peftcli.studies.engine.process.end_of_trial import result_of, too_often
from peftcli.studies.engine.process.machine_share import MachineShare
from peftcli.studies.engine.process.trial_job import job_of
from peftcli.studies.engine.process.trial_outcome import Evaluated, Outcome, Progress, Ready, curve_of
from peftcli.studies.engine.process.trial_process import TrialProcess
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import Trial, TrialResult
from peftcli.studies.engine.trial_states import TrialStates
from peftcli.studies.engine.watching import StopEarly, Watcher

_LOOK = 1.0
"""Seconds between two looks at the trials of other workers."""


class Work:
    """What one call of `Study.run` does.

    Args:
        files, states, leases: of the study.
        shares: of the machine, one for each trial that trains at once.
        watch: is told what happens.
        stop_early: may stop a trial.
    """

    def __init__(
        self,
        files: StudyFiles,
        states: TrialStates,
        leases: Leases,
        shares: Sequence[MachineShare],
        watch: Watcher,
        stop_early: StopEarly | None,
    ) -> None:
        self._files, self._states, self._leases, self._shares = files, states, leases, shares
        self._watch, self._stop_early = watch, stop_early
        self._running: dict[str, TrialProcess] = {}
        self._held: dict[str, Lease] = {}
        self._results: dict[str, TrialResult] = {}
        self._elsewhere: set[str] = set()
        self._beaten = time.monotonic()
        self._requests = 0

    def run(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Return the result of every trial, in order; those without one are trained.

        Raises:
            Stopped: asked to; the running trials saved their state.
            UserError: something that is no fault of a trial.
        """
        with requests_passed_on(self._asked):
            try:
                while not self._requests:
                    self._collect(trials)
                    self._start(trials)
                    if len(self._results) == len(trials):
                        return [self._results[trial.name] for trial in trials]
                    self._listen()
                self._save_running()
            finally:
                self._let_go()
        left = sum(self._files.result(trial.name) is None for trial in trials)
        text = f"stopped; {len(trials) - left} of {len(trials)} trials have ended, the others saved their state."
        raise Stopped(f"{text} The same command continues {self._files.directory}")

    def _asked(self, again: bool) -> None:
        """Take note of Ctrl-C or a signal; the second one does not wait for anything."""
        self._requests += 1 + again

    def _collect(self, trials: Sequence[Trial]) -> None:
        """Take the results that are there: of this worker, of others, of an earlier start."""
        for trial in trials:
            if trial.name in self._results or trial.name in self._running:
                continue
            result = self._files.result(trial.name)
            if result is not None:
                self._states.end(result)
                self._results[trial.name] = result
                self._watch.ended(trial, result)

    def _start(self, trials: Sequence[Trial]) -> None:
        """Start what nobody trains, while there is a free share of the machine."""
        for trial in trials:
            taken = {process.slot for process in self._running.values()}
            free = [slot for slot in range(len(self._shares)) if slot not in taken]
            if not free or self._requests:
                return
            if trial.name not in self._results and trial.name not in self._running:
                self._take(trial, free[0])

    def _take(self, trial: Trial, slot: int) -> None:
        saved = RunDirectory(self._files.run(trial.name)).checkpoints().steps()
        lease = self._leases.take(trial.name, max(saved, default=0))
        if lease is None:
            if trial.name not in self._elsewhere and (holder := self._leases.holder(trial.name)):
                self._elsewhere.add(trial.name)
                self._watch.note(f"{trial.name} is trained by process {holder.worker.pid} on {holder.worker.host}")
            return
        self._held[trial.name] = lease
        if self._files.result(trial.name) is not None:  # it ended while its lease was looked at
            self._drop(trial.name)
            return
        self._elsewhere.discard(trial.name)
        if lease.hopeless:
            self._end(trial, too_often(trial, lease.killed, self._files, self._leases.worker.host))
            return
        if lease.attempt > 1:
            self._watch.note(f"{trial.name} is continued" + (", left by a process that died" if lease.killed else ""))
        self._states.begin(trial)
        share = self._shares[slot]
        job = job_of(trial, self._files, share, asks=self._stop_early is not None)
        process = TrialProcess(trial, job, lease, slot, fresh=trial.fresh or not share.warm)
        process.curve = list(curve_of(RunDirectory(self._files.run(trial.name)).metrics.lines()))
        self._running[trial.name] = process
        self._watch.started(trial)

    def _listen(self) -> None:
        """Wait for messages, for a moment at most, and beat."""
        if not self._running:
            time.sleep(_LOOK)
        by_pipe = {process.messages: process for process in self._running.values()}
        for pipe in wait(list(by_pipe), timeout=_LOOK) if by_pipe else ():
            process = by_pipe[pipe]  # type: ignore[index]
            self._hear(process, process.receive())
        if time.monotonic() - self._beaten >= HEARTBEAT:
            self._beat()

    def _hear(self, process: TrialProcess, message: object) -> None:
        match message:
            case None:
                self._ended(process)
            case Ready():
                process.ready = time.monotonic()
            case Progress():
                self._watch.progressed(process.trial, message.step, message.total_steps)
            case Evaluated():
                self._evaluated(process, message)
            case Outcome():
                process.outcome = message

    def _evaluated(self, process: TrialProcess, message: Evaluated) -> None:
        trial = process.trial
        process.curve = [point for point in process.curve if point.step < message.point.step] + [message.point]
        stop = True  # after an error here, too: the process waits for an answer, and this worker ends
        try:
            self._states.report(trial, message.point)
            self._watch.evaluated(trial, message.point)
            stop = self._stop_early is not None and self._stop_early.should_stop(trial, process.curve)
            process.asked_to_stop = stop
        finally:
            if message.asks:
                process.answer(stop)

    def _ended(self, process: TrialProcess) -> None:
        """Write how a process ended; one that was killed, or that saved its state, gives its trial back."""
        trial, outcome = process.trial, process.outcome
        code = process.end()
        del self._running[trial.name]
        if trial.name not in self._held:  # another worker has it
            return
        if outcome is None and not self._requests:
            self._leases.count_kill(self._held.pop(trial.name))
            self._watch.note(f"the process of {trial.name} was killed (code {code}); another one continues the trial")
        elif outcome is None or (outcome.state == "interrupted" and not process.asked_to_stop):
            self._leases.release(self._held.pop(trial.name))
        elif outcome.state == "prevented":
            self._leases.release(self._held.pop(trial.name))
            raise UserError(f"{trial.name}: {outcome.reason}", suggestion="the same command then continues")
        else:
            self._end(trial, result_of(process, outcome, self._files, self._leases.worker.host))

    def _end(self, trial: Trial, result: TrialResult) -> None:
        """Write the result first: with it the trial has ended, whatever happens to this worker."""
        self._files.write_result(result)
        self._states.end(result)
        self._results[trial.name] = result
        self._drop(trial.name)
        self._watch.ended(trial, result)

    def _drop(self, name: str) -> None:
        """Remove the leases of a trial that has its result."""
        del self._held[name]
        self._leases.end(name)

    def _beat(self) -> None:
        """Write heartbeats; a trial that another worker took over (this machine slept) is left to that one."""
        self._beaten = time.monotonic()
        for name, lease in list(self._held.items()):
            if not self._leases.beat(lease):
                del self._held[name]
                if name in self._running:
                    self._running[name].kill()
                self._watch.note(f"{name} was taken over by another worker: this one was silent for too long")

    def _save_running(self) -> None:
        """Let every running trial save its state and end; a second request ends them at once."""
        self._each(TrialProcess.ask_to_stop)
        killed = False
        while self._running:
            self._listen()
            if self._requests > 1 and not killed:
                killed = True
                self._each(TrialProcess.kill)

    def _let_go(self) -> None:
        """Leave nothing behind: after an error processes are stopped, too, and every trial is given back."""
        self._each(TrialProcess.ask_to_stop)
        for process in self._running.values():
            while (message := process.receive()) is not None:
                if isinstance(message, Evaluated) and message.asks:
                    process.answer(True)
            process.end()
        self._running.clear()
        for lease in self._held.values():
            self._leases.release(lease)
        self._held.clear()

    def _each(self, action: Callable[[TrialProcess], None]) -> None:
        for process in self._running.values():
            action(process)
