"""What a command is at: the library says it, and whoever watches shows it.

The stages of a long call (a model is loaded, rows are prepared, rows are predicted) are said where they happen, so that
no function has to hand a bar on to the next. Nobody watches unless a caller asks for it: then it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


@dataclass
class Stage:
    """A part of what is done.

    Args:
        text: what is done, such as `predicting`.
        total: how many parts it has; None where nobody knows.
        done: how many of them are done.
        unit: what the parts are.
    """

    text: str
    total: int | None = None
    done: int = 0
    unit: str = "rows"


class Watcher(Protocol):
    """Shows stages."""

    def close(self) -> None:
        """Take away what is shown: a result follows."""

    def show(self, stage: Stage | None) -> None:
        """Take the stage that is under way, each time that it begins or goes on; None between two of them."""


@dataclass
class _Watched:
    watcher: Watcher
    stages: list[Stage]


_WATCHED: ContextVar[_Watched | None] = ContextVar("watched", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the stages of what is done inside."""
    token = _WATCHED.set(_Watched(watcher, []))
    try:
        yield
    finally:
        _WATCHED.reset(token)


def end_watching() -> None:
    """Take away what is shown of stages, before a result is printed."""
    watched = _WATCHED.get()
    if watched is not None:
        watched.watcher.close()


@contextmanager
def stage(text: str, total: int | None = None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Say what is done inside; yield what is to be told how many parts more are done.

    A stage within another takes its place until it ends.
    """
    watched = _WATCHED.get()
    if watched is None:
        yield lambda _parts: None
        return
    mine = Stage(text, total, 0, unit)

    def advance(parts: int) -> None:
        mine.done += parts
        if watched.stages and watched.stages[-1] is mine:
            watched.watcher.show(mine)

    watched.stages.append(mine)
    watched.watcher.show(mine)
    try:
        yield advance
    finally:
        if mine in watched.stages:  # a generator that nobody ends is ended late
            watched.stages.remove(mine)
        watched.watcher.show(watched.stages[-1] if watched.stages else None)
