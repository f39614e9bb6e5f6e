"""Callbacks: what other packages do while a run trains; a recipe names them in `training.callbacks`. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.plugins import plugin
from peftcli.record.run_summary import Summary
from peftcli.training.watch.reporting import StepRecord


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
        raise found.wrong("ends in no CALLBACK that is a subclass of peftcli.training.watch.callbacks.Callback")
    return held


class Callbacks:
    """The callbacks of a run; they are told things while `running`.

    Args:
        names: of `training.callbacks`; none beside the main process.
        run: what they are told of it.
        note: receives which one failed.
    """

    def __init__(self, names: Sequence[str], run: WatchedRun, note: Callable[[str], None]) -> None:
        self._names, self._run, self._note = tuple(dict.fromkeys(names)), run, note
        self._running: dict[str, Callback] = {}
        self._summary: Summary | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make and begin them; at the end, whatever ended it, each is told how.

        Raises:
            UserError: there is no such callback, or it cannot be made.
        """
        for name in self._names:
            found = find_callback(name)
            if found is None:
                raise UserError(Problem(f"there is no callback {name!r}", key="training.callbacks"))
            self._running[name] = _made(name, found)
        self._tell(lambda callback: callback.begin(self._run))
        try:
            yield
        finally:
            self._tell(lambda callback: callback.end(self._summary))
            self._running.clear()

    def step(self, record: StepRecord) -> None:
        """Hand on a step."""
        self._tell(lambda callback: callback.step(record))

    def evaluation(self, metrics: Mapping[str, Any]) -> bool:
        """Hand on an evaluation; return whether some callback ends the run."""
        answers = self._tell(lambda callback: callback.evaluation(dict(metrics)))  # all of them, before one decides
        return any(answer is True for answer in answers)

    def finished(self, summary: Summary) -> None:
        """Keep how the run ended, for `end`."""
        self._summary = summary

    def _tell(self, what: Callable[[Callback], Any]) -> list[Any]:
        """Return what each answers; one that fails is let go."""
        answers = []
        for name, callback in list(self._running.items()):
            try:
                answers.append(what(callback))
            except Exception as error:
                self._running.pop(name, None)
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self._note(f"the callback {name} failed and is told nothing more of this run ({reason})")
        return answers


def _made(name: str, found: type[Callback]) -> Callback:
    """Return a new object.

    Raises:
        UserError: its class needs arguments, or fails.
    """
    try:
        return found()
    except Exception as error:
        problem = f"the callback {name} cannot be made: {type(error).__name__}: {error}"
        raise UserError(Problem(problem, key="training.callbacks", suggestion="leave it out")) from error
