"""What a sweep found: the record that `sweep.json` holds, and from which everything else is rendered."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SweepTrial:
    """One trial: `values` by recipe key, its `score` (None if it has none), its `state`, its run directory."""

    number: int
    values: dict[str, Any]
    score: float | None
    state: str
    run: str | None = None
    reason: str | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class SweepBest:
    """The winner: its values, its score on fresh seeds with the 95% interval, and the recipe that was written."""

    values: dict[str, Any]
    score: float
    interval: tuple[float, float]
    recipe: str
    scores: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class Sweep:
    """A whole sweep.

    Args:
        metric, greater_is_better: what the scores are values of.
        keys: recipe key -> the values or the range that was searched, as typed.
        trials: in the order in which they were made.
        best: None if no trial finished.
        importance: by key, shares that add up to 1; empty where it cannot be told.
        answer: one line in words, such as the smallest rank that ties with the best.
        sampler, pruner, notes: how it was searched, and what a reader must know.
    """

    metric: str
    greater_is_better: bool
    keys: dict[str, str]
    trials: list[SweepTrial]
    best: SweepBest | None = None
    importance: dict[str, float] = field(default_factory=dict)
    answer: str = ""
    sampler: str = ""
    pruner: str = ""
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    recipe: str = ""
    seconds: float = 0.0
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    version: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `sweep.json` and `--json`."""
        return asdict(self)
