"""How much a method's score varies with the seed, from few seeds.

Three seeds tell a variance badly. What all methods of a comparison say together tells more, as far as they agree: each
method's variance is drawn towards the common one, the more strongly the less their variances differ beyond chance
(Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3(1), article 3, sections 4 and 6.2). It is not
taken for smaller than the method's own seeds show: one unstable method among steady ones would otherwise seem steady.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeedVariance:
    """The variance of one seed's score, and the degrees of freedom with which it is known."""

    variance: float
    freedom: float


def seed_variances(scores: Sequence[Sequence[float]]) -> list[SeedVariance | None]:
    """Return the variance over seeds of each method; None for all where no method has two seeds.

    Args:
        scores: of each method, one a seed.
    """
    own = [(float(np.var(each, ddof=1)), len(each) - 1) for each in scores if len(each) > 1]
    if not own:
        return [None] * len(scores)
    variances, freedom = np.array([variance for variance, _ in own]), np.array([float(d) for _, d in own])
    common, strength = _common(variances, freedom)
    return [_of_method(each, common, strength, float(freedom.sum())) for each in scores]


def _of_method(scores: Sequence[float], common: float, strength: float, most: float) -> SeedVariance | None:
    """Return the greater of a method's own variance and the one drawn towards the common one.

    Where its own is greater, less of what the other methods know counts: the degrees of freedom go down to its own.

    Args:
        most: degrees of freedom of all methods together.
    """
    d = max(0, len(scores) - 1)
    own = float(np.var(scores, ddof=1)) if d else 0.0
    if strength + d == 0:
        return None
    drawn = common if np.isinf(strength) else (strength * common + d * own) / (strength + d)
    freedom = min(strength + d, most)
    if own <= drawn:
        return SeedVariance(drawn, freedom)
    return SeedVariance(own, d + (freedom - d) * (drawn / own) ** 2)


def _common(variances: Array, freedom: Array) -> tuple[float, float]:
    """Return the common variance and its strength in degrees of freedom; infinite where all methods agree.

    The logarithms of sample variances of one true variance vary as known (by the trigamma function); what they vary
    more is how far the methods' true variances differ.
    """
    from scipy.special import digamma, polygamma

    pooled = float((variances * freedom).sum() / freedom.sum())
    middle = float(np.median(variances))
    if len(variances) < 2:
        return pooled, 0.0
    if middle <= 0:
        return pooled, float("inf")
    logs = np.log(np.maximum(variances, 1e-5 * middle)) - digamma(freedom / 2) + np.log(freedom / 2)
    beyond = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if beyond <= 0:
        return pooled, float("inf")
    strength = 2 * _inverse_trigamma(beyond)
    return float(np.exp(logs.mean() + digamma(strength / 2) - np.log(strength / 2))), strength


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma, which is nearly a straight line."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        at = float(polygamma(1, x))
        step = at * (1 - at / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-8 * x:
            break
    return x
