"""Scores and differences of scores with their error, over the rows that were held out and over seeds.

A score varies with the rows (they are a sample) and with the seed (training is random), and the two are crossed: each
seed is scored on all rows. The variance of a mean over both is that over rows, plus that over seeds, less what both
count twice (Cameron, Gelbach and Miller 2011, Journal of Business and Economic Statistics 29(2), section 2.1). The part
over rows comes from a bootstrap, the part over seeds from `seed_variance`, and the interval from a t distribution whose
degrees of freedom follow Satterthwaite (1946): few seeds make it wide, not falsely narrow.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from peftcli.studies.evidence.metric_sums import BOUNDS, UNBOUNDED, ScoredRows
from peftcli.studies.evidence.row_bootstrap import row_covariance
from peftcli.studies.evidence.seed_variance import SeedVariance, seed_variances

Key = TypeVar("Key", bound=Hashable)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error (nan where it cannot be told) and the degrees of freedom of that."""

    value: float
    error: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval."""
        from scipy.stats import t

        if not np.isfinite(self.error):
            return None
        reach = float(t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float:
        """The two-sided probability of a value as far from 0 if the truth is 0; 1 where the error cannot be told."""
        from scipy.stats import t

        if not np.isfinite(self.error):
            return 1.0
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * t.sf(abs(self.value) / self.error, self.freedom))


@dataclass(frozen=True)
class Runs:
    """A method's runs: their rows, and whether a seed had a part in them."""

    rows: Sequence[ScoredRows]
    drawn: bool = True


class Estimates(Generic[Key]):
    """The scores of several methods on rows that they share, by key.

    Attributes:
        values: the score of each of a method's runs.
        seeds_covered: whether the intervals hold for other seeds, too.
    """

    def __init__(self, methods: Mapping[Key, Runs]) -> None:
        self._where: dict[Key, npt.NDArray[np.int64]] = {}
        runs: list[ScoredRows] = []
        for key, each in methods.items():
            self._where[key] = np.arange(len(runs), len(runs) + len(each.rows))
            runs += each.rows
        every = np.array([run.value for run in runs])
        self.values = {key: every[where].tolist() for key, where in self._where.items()}
        self._covariance = row_covariance(runs)
        self._places = min((len(np.unique(run.clusters)) for run in runs), default=0)
        low, high = BOUNDS.get(runs[0].metric, UNBOUNDED) if runs else UNBOUNDED
        if ((every < low) | (every > high)).any():  # the loss of some preferences is below 0
            low, high = UNBOUNDED
        self._bounds = (low, high)
        self._least = ((high - low) / (self._places + 2)) ** 2 if np.isfinite(high - low) else 0.0
        drawn = [key for key, each in methods.items() if each.drawn]
        found = seed_variances([self.values[key] for key in drawn])
        self._seeds: dict[Key, SeedVariance | None] = dict(zip(drawn, found, strict=True))
        self.seeds_covered = all(each is not None for each in found)

    def score(self, key: Key) -> Estimate:
        """Return the mean score of a method over its seeds."""
        return self._estimate({key: 1.0})

    def score_interval(self, key: Key) -> tuple[float, float] | None:
        """Return the 95% interval of a method's score, within what the metric can be."""
        interval = self.score(key).interval
        low, high = self._bounds
        return None if interval is None else (max(low, interval[0]), min(high, interval[1]))

    def difference(self, key: Key, other: Key) -> Estimate:
        """Return by how much the first method's mean score is greater."""
        return self._estimate({key: 1.0, other: -1.0})

    def difference_interval(self, difference: Estimate) -> tuple[float, float] | None:
        """Return the 95% interval of a difference of two scores, within what it can be: 100 points of accuracy."""
        interval, most = difference.interval, self._bounds[1] - self._bounds[0]
        return None if interval is None else (max(-most, interval[0]), min(most, interval[1]))

    def _estimate(self, signs: Mapping[Key, float]) -> Estimate:
        weights = np.zeros(len(self._covariance))
        for key, sign in signs.items():
            weights[self._where[key]] = sign / len(self._where[key])
        value = sum(sign * float(np.mean(self.values[key])) for key, sign in signs.items())
        used = np.flatnonzero(weights)
        among = self._covariance[np.ix_(used, used)]
        over_rows = float(weights[used] @ among @ weights[used])
        if not np.isfinite(over_rows):
            return Estimate(value, float("nan"), 1.0)
        # as if one more row had been decided otherwise (Agresti and Min 2005): no difference in 20 rows is not none
        over_rows = max(0.0, over_rows) + self._least
        parts = [self._over_seeds(key) for key in signs]
        over_seeds = sum(variance for variance, _, _ in parts)
        twice = sum(both for _, both, _ in parts)
        variance = max(over_rows + over_seeds - twice, over_rows, over_seeds)
        uncertain = over_rows**2 / max(1, self._places - 1)
        uncertain += sum(part**2 / freedom for part, _, freedom in parts if part)
        freedom = variance**2 / uncertain if uncertain else float(max(1, self._places - 1))
        return Estimate(value, variance**0.5, max(1.0, freedom))

    def _over_seeds(self, key: Key) -> tuple[float, float, float]:
        """Return the variance of a method's mean over seeds, how much of it the rows count too, and its freedom."""
        seeds, where = self._seeds.get(key), self._where[key]
        if seeds is None:
            return 0.0, 0.0, 1.0
        count = len(where)
        among = self._covariance[np.ix_(where, where)]
        both = (float(np.trace(among)) - float(among.sum()) / count) / (count - 1) if count > 1 else 0.0
        return seeds.variance / count, max(0.0, both) / count, seeds.freedom
