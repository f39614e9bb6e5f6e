"""How scores vary, and vary together, with the rows that happened to be held out: a bootstrap over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from peftcli.studies.evidence.metric_sums import ScoredRows

Array = npt.NDArray[np.float64]

DRAWS = 2000
"""Draws of rows; a standard error is off by 1.6% of itself."""
NUMBERS_AT_ONCE = 8_000_000
"""Weights that are held at once."""
SEED = 17
"""The same scores give the same report."""
LEAST_DEFINED = 0.9
"""A score that is undefined in more draws than the rest has no interval."""


def row_covariance(runs: Sequence[ScoredRows]) -> Array:
    """Return the covariance of the runs' scores over draws of their rows: (runs, runs).

    Runs of the same rows get the same draws, so that what is hard for all of them cancels in differences. Scores of
    different rows do not vary together. Rows of one place are drawn together (Miller 2024, arXiv 2411.00640, section
    2.2). A run with a single place, or whose score is often undefined, has nan.
    """
    out = np.zeros((len(runs), len(runs)))
    for identity in dict.fromkeys(run.identity for run in runs):
        mine = [number for number, run in enumerate(runs) if run.identity == identity]
        out[np.ix_(mine, mine)] = _covariance([runs[number] for number in mine])
    return out


def _covariance(runs: Sequence[ScoredRows]) -> Array:
    clusters = runs[0].clusters
    places = int(clusters.max()) + 1 if clusters.size else 0
    if places < 2:
        return np.full((len(runs), len(runs)), np.nan)
    draws = np.concatenate([np.stack([run.of_rows(weights) for run in runs], 1) for weights in _weights(clusters)])
    defined = np.isfinite(draws).mean(0) >= LEAST_DEFINED
    whole = draws[np.isfinite(draws[:, defined]).all(1)]
    out = np.full((len(runs), len(runs)), np.nan)
    if defined.any() and len(whole) > 1:
        scaled = np.atleast_2d(np.cov(whole[:, defined], rowvar=False)) * places / (places - 1)
        out[np.ix_(defined, defined)] = scaled
    return out


def _weights(clusters: npt.NDArray[np.int64]) -> Iterator[Array]:
    """Yield how often each row is drawn, in blocks of (draws, rows)."""
    places = int(clusters.max()) + 1
    random = np.random.default_rng([SEED, places])
    block = max(1, NUMBERS_AT_ONCE // max(places, len(clusters)))
    for start in range(0, DRAWS, block):
        count = min(block, DRAWS - start)
        drawn = random.integers(places, size=(count, places)) + np.arange(count)[:, None] * places
        times = np.bincount(drawn.ravel(), minlength=count * places).reshape(count, places)
        yield times[:, clusters].astype(np.float64)
