"""BLEU and chrF as functions of counts of n-grams, summed over the rows of a draw.

The formulas are those of sacrebleu's corpus scores: Papineni et al. 2002, section 2.3, with exponential smoothing (Chen
and Cherry 2014, method 3), and Popovic 2015 with n = 6 and beta = 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from peftcli.tasks.metric_table import bleu_words

Array = npt.NDArray[np.float64]

CHARACTERS = 6
"""Longest n-grams of characters in chrF."""
BETA = 2.0
"""How much more recall counts than precision in chrF."""


def bleu_sums(predictions: list[str], references: list[str]) -> Callable[[Array], Array]:
    """Return BLEU, 0 to 100, of texts that count as often as they were drawn."""
    from sacrebleu.metrics import BLEU

    words = bleu_words(references)
    counted = BLEU(effective_order=True, tokenize=words)  # of a single text; its counts are those of the corpus score
    found = [counted.sentence_score(p, [r]) for p, r in zip(predictions, references, strict=True)]
    right, total = (np.array([getattr(row, name) for row in found], dtype=float) for name in ("counts", "totals"))
    lengths = np.array([[row.sys_len, row.ref_len] for row in found], dtype=float)

    def metric(weights: Array) -> Array:
        return _bleu(weights @ right, weights @ total, weights @ lengths)

    return metric


def _bleu(right: Array, total: Array, lengths: Array) -> Array:
    """Return BLEU from counts of right and all n-grams, (draws, orders), and lengths: (draws, written and true)."""
    written, true = lengths.T
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.where(written < true, np.exp(1 - true / written), 1.0)
        smoothed = 2.0 ** -np.cumsum((right == 0) & (total > 0), axis=1)
        logs = np.log(np.where(right > 0, right, smoothed) / total)
    whole = np.all(total > 0, axis=1) & np.any(right > 0, axis=1)  # without any n-gram of an order the score is 0
    mean = np.where(whole[:, None], logs, 0.0).mean(1)
    return np.where(whole, 100 * brevity * np.exp(mean), 0.0)


def chrf_sums(predictions: list[str], references: list[str]) -> Callable[[Array], Array]:
    """Return chrF, 0 to 100, of texts that count as often as they were drawn."""
    counts = np.array([_characters(p, r) for p, r in zip(predictions, references, strict=True)], dtype=float)

    def metric(weights: Array) -> Array:
        written, true, matched = (weights @ counts[:, side] for side in range(3))
        there = (written > 0) & (true > 0)
        orders = np.maximum(there.sum(1), 1)
        precision = (np.where(there, matched, 0.0) / np.maximum(written, 1)).sum(1) / orders
        recall = (np.where(there, matched, 0.0) / np.maximum(true, 1)).sum(1) / orders
        below = BETA**2 * precision + recall
        above = (1 + BETA**2) * precision * recall
        score: Array = 100 * np.divide(above, below, out=np.zeros_like(below), where=below > 0)
        return score

    return metric


def _characters(prediction: str, reference: str) -> list[list[int]]:
    """Return how many n-grams of each order are written, true and both; spaces do not count."""
    written, true = ("".join(text.split()) for text in (prediction, reference))
    rows: list[list[int]] = [[], [], []]
    for size in range(1, CHARACTERS + 1):
        mine, theirs = (Counter(text[i : i + size] for i in range(len(text) - size + 1)) for text in (written, true))
        rows[0].append(mine.total() if theirs else 0)
        rows[1].append(theirs.total())
        rows[2].append((mine & theirs).total())
    return rows
