"""The callbacks of a run: a recipe names those of other packages in `training.callbacks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.record.callback import Callback, StepRecord, WatchedRun, find_callback
from peftcli.record.run_summary import Summary


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
                self._note(f"the callback {name} failed and is not called again in this run ({reason})")
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
