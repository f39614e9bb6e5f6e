"""What a sweep found: the record that `sweep.json` holds, and from which everything else is rendered."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from peftcli.studies.engine.measured_where import MeasuredWhere


@dataclass
class SweepTrial:
    """One trial of the search.

    Args:
        number: from 0, in the order in which trials were made.
        values: by recipe key; a key that does not apply is absent.
        score: of its one seed, so that the best of them is partly lucky; None if it has none.
        state: `finished`, `stopped` (pruned), `diverged`, `failed`, `refused`, or `not run` where the budget was used.
        run: its run directory, relative to the study's.
        reason: one sentence unless it finished.
        curve: (step, score) of each evaluation after the first step.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    state: str
    run: str | None = None
    reason: str | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class SweepWinner:
    """Values that were trained again on fresh seeds.

    Args:
        values: by recipe key.
        scores: one a fresh seed; `seeds`: those that finished; `runs`: their directories.
        score, interval: the mean and its 95% interval over rows and seeds; None if no run finished.
        verdict: `best`, `tied with the best` or `behind`; None if no run finished.
        difference: to the best, positive is worse; `difference_interval`: its 95% interval.
        p_best: Holm-corrected p-value of that difference.
        reason: one sentence if no run finished.
    """

    values: dict[str, Any]
    scores: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    score: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p_best: float | None = None
    reason: str | None = None


@dataclass
class SweepBest:
    """The winner: its values, its score on fresh seeds with the 95% interval, and the recipe that was written.

    The interval is None where none can be told, such as of a single held-out row.
    """

    values: dict[str, Any]
    score: float
    interval: tuple[float, float] | None
    recipe: str
    scores: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class Sweep(MeasuredWhere):
    """A whole sweep.

    Args:
        metric, greater_is_better: what the scores are values of.
        keys: recipe key -> the values or the range that was searched, as typed.
        trials: in the order in which they were made, each with one seed.
        winners: those that were trained again on fresh seeds, the best first; all values of a grid of one number.
        best: None if no trial finished.
        importance: by key, shares that add up to 1; empty where it cannot be told.
        answer: one line in words, such as the smallest rank that ties with the best.
        sampler, pruner, notes: how it was searched, and what a reader must know.
        seed: of the search; `seeds`: the fresh ones.
        rows: how many were held out.
        recipe: path of the recipe as typed.
        seconds: of all trials together.
    """

    metric: str
    greater_is_better: bool
    keys: dict[str, str]
    trials: list[SweepTrial]
    winners: list[SweepWinner] = field(default_factory=list)
    best: SweepBest | None = None
    importance: dict[str, float] = field(default_factory=dict)
    answer: str = ""
    sampler: str = ""
    pruner: str = ""
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    seeds: list[int] = field(default_factory=list)
    rows: int = 0
    recipe: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `sweep.json` and `--json`."""
        return asdict(self)
