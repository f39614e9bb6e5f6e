"""Holm's correction: many comparisons at once, and the chance of any false claim among them stays at the level."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def holm(p_values: Mapping[T, float]) -> dict[T, float]:
    """Return the corrected p-values (Holm 1979, Scandinavian Journal of Statistics 6(2)), in the order given.

    The least is multiplied by their number, the next by one less, and so on; none is below one that was smaller, and
    none above 1. It holds whatever the comparisons have in common.
    """
    corrected, least = {}, 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[key]))
        corrected[key] = least
    return {key: corrected[key] for key in p_values}
