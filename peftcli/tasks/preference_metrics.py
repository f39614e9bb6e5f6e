"""Metrics of preferences: of pairs of answers, and of single ones.

A pair's prediction is its rewards, its reference its log-probabilities, chosen before rejected. A single answer's
prediction is its reward and whether it is good (1 or 0), its reference its log-probability and the divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Scores = dict[str, float]
Function = Callable[[Sequence[Any], Sequence[Any]], Scores]


def preferred(name: str, of: Callable[[Sequence[float], Sequence[float]], float]) -> Function:
    """Return the mean of a function of a pair's rewards and log-probabilities: (chosen, rejected) each."""

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        values = [float(of(rewards, logps)) for rewards, logps in zip(predictions, references, strict=True)]
        return {name: math.fsum(values) / max(1, len(values))}

    return function


def answers(name: str, place: str, good: bool) -> Function:
    """Return the mean reward, or log-probability, of the single answers of one kind; nan where there are none."""

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        rows = zip(predictions, references, strict=True)
        values = [(reward, logp)[place == "logps"] for (reward, own), (logp, _) in rows if bool(own) == good]
        return {name: math.fsum(values) / len(values) if values else math.nan}

    return function


_GOOD, _BAD = (answers("reward", "rewards", good) for good in (True, False))


def answers_apart(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Return how far the mean rewards of good and of bad answers are apart; nan where one kind is missing."""
    good, bad = (of(predictions, references)["reward"] for of in (_GOOD, _BAD))
    return {"rewards_margins": good - bad}


def divergence(_predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Return the divergence, which is the same for all rows of a set."""
    return {"kl": math.fsum(kl for _, kl in references) / max(1, len(references))}
