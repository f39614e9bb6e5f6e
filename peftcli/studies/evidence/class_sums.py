"""F1, precision, recall and Matthews correlation as functions of counts by class, summed over the rows of a draw.

A class counts among those of a draw if it is decided or true in one of its rows, as in scikit-learn and seqeval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.tasks.metric_table import entity_tags

Array = npt.NDArray[np.float64]
OfCounts = Callable[[Array, Array, Array], Array]
"""From what was decided rightly, decided, and true, (draws, classes) each, to the metric of each draw."""


def divided(above: Array, below: Array, empty: float = np.nan) -> Array:
    """Return a quotient, `empty` where it would be divided by 0."""
    quotient: Array = np.divide(above, below, out=np.full(np.shape(above), empty), where=below != 0)
    return quotient


@dataclass(frozen=True)
class Decisions:
    """Counts by row and class, each (rows, classes): decided rightly, decided, and true."""

    right: Array
    decided: Array
    true: Array


def of_columns(predictions: list[list[int]], references: list[list[float]]) -> Decisions:
    """Return the counts of rows with several classes each, as lists of 0 and 1."""
    decided, true = np.array(predictions, dtype=float), np.array(references, dtype=float)
    return Decisions(decided * true, decided, true)


def of_classes(predictions: list[Any], references: list[Any]) -> Decisions:
    """Return the counts of rows with one class each."""
    classes = {value: number for number, value in enumerate(sorted({*predictions, *references}))}
    each = np.eye(len(classes))
    decided, true = each[[classes[p] for p in predictions]], each[[classes[r] for r in references]]
    return Decisions(decided * true, decided, true)


def of_entities(predictions: list[list[str]], references: list[list[str]]) -> Decisions:
    """Return counts of whole entities by kind: an entity is right if its kind and both ends are."""
    import warnings

    from seqeval.metrics.sequence_labeling import get_entities

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual tags
        rows = zip(predictions, references, strict=True)
        found = [tuple(set(get_entities(entity_tags(tags))) for tags in row) for row in rows]
    kinds = sorted({entity[0] for row in found for side in row for entity in side})
    sides = [[row[0] & row[1] for row in found], [row[0] for row in found], [row[1] for row in found]]
    counts = [[[sum(e[0] == kind for e in row) for kind in kinds] for row in side] for side in sides]
    return Decisions(*(np.array(side, dtype=float).reshape(len(found), len(kinds)) for side in counts))


def by_class(
    counted: Callable[[list[Any], list[Any]], Decisions], finish: OfCounts
) -> Callable[[list[Any], list[Any]], Callable[[Array], Array]]:
    """Return what makes a metric of draws: `finish` gets the counts of each draw, (draws, classes)."""

    def maker(predictions: list[Any], references: list[Any]) -> Callable[[Array], Array]:
        counts = counted(predictions, references)

        def metric(weights: Array) -> Array:
            return finish(weights @ counts.right, weights @ counts.decided, weights @ counts.true)

        return metric

    return maker


def _f1_of(right: Array, decided: Array, true: Array) -> Array:
    return divided(2 * right, decided + true, empty=0.0)


def _macro(of_class: OfCounts) -> OfCounts:
    """Return the mean over the classes that occur among the decisions or the truth of a draw."""

    def finish(right: Array, decided: Array, true: Array) -> Array:
        there = decided + true > 0
        return divided((of_class(right, decided, true) * there).sum(1), there.sum(1).astype(float), empty=0.0)

    return finish


def _micro(of_class: OfCounts) -> OfCounts:
    return lambda right, decided, true: of_class(right.sum(1), decided.sum(1), true.sum(1))


def _all_classes(of_class: OfCounts) -> OfCounts:
    """Return the mean over all columns of rows with several classes: each of them is asked for in every row."""
    return lambda right, decided, true: of_class(right, decided, true).mean(1)


def _weighted(right: Array, decided: Array, true: Array) -> Array:
    return divided((_f1_of(right, decided, true) * true).sum(1), true.sum(1), empty=0.0)


def _mcc(right: Array, decided: Array, true: Array) -> Array:
    rows = true.sum(1)
    both = right.sum(1) * rows - (decided * true).sum(1)
    spread = np.sqrt((rows**2 - (decided**2).sum(1)) * (rows**2 - (true**2).sum(1)))
    return divided(both, spread, empty=0.0)


def _precision(right: Array, decided: Array, _true: Array) -> Array:
    return divided(right, decided, empty=0.0)


def _recall(right: Array, _decided: Array, true: Array) -> Array:
    return divided(right, true, empty=0.0)


SINGLE_LABEL: dict[str, OfCounts] = {
    "f1": _macro(_f1_of),
    "f1_macro": _macro(_f1_of),
    "f1_micro": _micro(_f1_of),
    "f1_weighted": _weighted,
    "precision": _macro(_precision),
    "recall": _macro(_recall),
    "mcc": _mcc,
}
MULTI_LABEL: dict[str, OfCounts] = {
    "f1": _all_classes(_f1_of),
    "f1_macro": _all_classes(_f1_of),
    "f1_micro": _micro(_f1_of),
    "f1_weighted": _weighted,
    "precision": _all_classes(_precision),
    "recall": _all_classes(_recall),
}
ENTITIES: dict[str, OfCounts] = {
    "f1": _micro(_f1_of),
    "f1_micro": _micro(_f1_of),
    "f1_macro": _macro(_f1_of),
    "precision": _micro(_precision),
    "recall": _micro(_recall),
}
