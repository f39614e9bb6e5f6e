"""Evaluation metrics: which ones a run computes, whether that is possible here, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftcli.errors import UserError
from peftcli.recipe.checks.metric_checks import set_and_metric
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.metric_table import METRICS, OWN_METRICS, Scores, metric_problems, metrics_of_plugin

_EVERY = {name: info for metrics in OWN_METRICS.values() for name, info in metrics.items()}
_BESIDE_THE_LOSS = ("loss", *(name for name, info in _EVERY.items() if info.function is None))
"""Names that come with the loss and are no functions of the predictions."""
_FALLING = ("loss", *(name for name, info in _EVERY.items() if info.falls))
"""The metrics that should fall; all others should rise."""


def greater_is_better(metric: str) -> bool:
    """Return the usual direction of a metric, such as `eval_loss` or `eval_news_f1_macro`."""
    words = metric.removeprefix("eval_").split("_")
    for start in range(len(words)):  # the longest ending that is a metric: what stands before it is a validation set
        name = "_".join(words[start:])
        if name in _EVERY or name == "loss":
            return name not in _FALLING
        if found := metrics_of_plugin(name):
            return not any(info.falls for info in found.values())
    return True


def wanted_metrics(default: Sequence[str], spec: TrainingSpec, sets: Sequence[str]) -> list[str]:
    """Return the metrics to compute: the task's, those asked for, and the one that chooses the adapter.

    Args:
        sets: names of the validation sets.
    """
    _, best = set_and_metric(spec.metric_for_best_model.removeprefix("eval_"), sets)
    return [name for name in dict.fromkeys([*default, *spec.metrics, best]) if name not in _BESIDE_THE_LOSS]


def compute_metrics(names: Sequence[str], kind: str, predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Return the values of the named metrics.

    Raises:
        UserError: a name is unknown, is for another task, or its package is missing.
    """
    problems = metric_problems(names, kind)
    if problems:
        raise UserError(problems)
    scores: Scores = {}
    for name in names:
        function = METRICS[kind][name].function
        scores.update(function(predictions, references) if function is not None else {})
    return scores
