"""Metrics of rows that count as often as they were drawn: what a bootstrap computes thousands of times.

Most metrics are functions of sums over rows: a mean, a loss per token, F1 from counts of classes, BLEU from counts of
n-grams. Those sums are one matrix product for all draws. A rank correlation ranks its rows for each draw, and a metric
that is not known here is computed by its own function on rows that are really repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.errors import UserError
from peftcli.inference.row_scores import RowScores
from peftcli.recipe.checks.metric_checks import set_and_metric
from peftcli.studies.evidence.class_sums import (
    ENTITIES,
    MULTI_LABEL,
    SINGLE_LABEL,
    by_class,
    divided,
    of_classes,
    of_columns,
    of_entities,
)
from peftcli.studies.evidence.text_sums import bleu_sums, chrf_sums
from peftcli.tasks.metric_table import METRICS, OWN_METRICS

Array = npt.NDArray[np.float64]
WeightedMetric = Callable[[Array], Array]
"""From how often each row was drawn, (draws, rows), to the metric of each draw, (draws,); nan where it has none."""

INFINITE = float("inf")
UNBOUNDED = (-INFINITE, INFINITE)
_CLASSES = ("accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted", "precision", "recall")
_TEXTS = ("token_accuracy", "exact_match", "rouge1", "rouge2", "rougeL")
BOUNDS = {
    **dict.fromkeys((*_CLASSES, *_TEXTS, "rewards_accuracies"), (0.0, 1.0)),
    **dict.fromkeys(("loss", "mse", "rmse", "mae"), (0.0, INFINITE)),
    **dict.fromkeys(("mcc", "pearson", "spearman"), (-1.0, 1.0)),
    **dict.fromkeys(("bleu", "chrf"), (0.0, 100.0)),
    "perplexity": (1.0, INFINITE),
    "r2": (-INFINITE, 1.0),
}
"""Least and greatest value of a metric; rewards, log-probabilities and metrics of plug-ins have no known ones."""


@dataclass(frozen=True)
class ScoredRows:
    """The rows of one run that a metric is about: all of them, or those of one validation set.

    Args:
        metric: its name, without `eval_` and without the set's name.
        of_rows: the metric for draws of these rows.
        clusters: (rows,) number of the place that each row comes from: parts of one long row are drawn together.
        identity: of the rows.
    """

    metric: str
    of_rows: WeightedMetric
    clusters: npt.NDArray[np.int64]
    identity: str

    @property
    def value(self) -> float:
        """The metric of the rows as they are."""
        return float(self.of_rows(np.ones((1, len(self.clusters))))[0])


def bounds_of(metric: str) -> tuple[float, float]:
    """Return the least and the greatest value that a metric can have, with `eval_` and the set's name or without."""
    words = metric.removeprefix("eval_").split("_")
    endings = ("_".join(words[start:]) for start in range(len(words)))  # the longest first
    return next((BOUNDS[name] for name in endings if name in BOUNDS), UNBOUNDED)


def general_rows_of(scores: RowScores) -> ScoredRows | None:
    """Return a run's rows of general text with their loss; None where it has none."""
    general = scores.general
    if general is None:
        return None
    function = _ratio(np.array(general.loss_sums), np.array(general.counts))
    return ScoredRows("loss", function, np.arange(len(general.counts)), general.identity)


def scored_rows(scores: RowScores, metric: str) -> ScoredRows:
    """Return a run's rows with a metric, such as `eval_loss`, `accuracy` or `eval_news_f1` of the set `news`.

    Raises:
        UserError: the task has no such metric, or the run was not asked for it.
    """
    part, name = set_and_metric(metric.removeprefix("eval_"), scores.sets)
    rows = np.arange(len(scores))
    if part:
        number, starts = list(scores.sets).index(part), np.cumsum([0, *scores.sets.values()])
        rows = rows[starts[number] : starts[number + 1]]
    function = _metric(scores, rows, name)
    places = np.array([scores.places[row] for row in rows]).reshape(len(rows), 2)
    _, clusters = np.unique(places, axis=0, return_inverse=True)
    return ScoredRows(name, function, clusters.reshape(-1).astype(np.int64), scores.identity)


def _metric(scores: RowScores, rows: npt.NDArray[np.int64], name: str) -> WeightedMetric:
    losses, counts = np.array(scores.loss_sums)[rows], np.array(scores.counts)[rows]
    if name == "loss":
        return _ratio(losses, counts)
    if name == "perplexity":
        return _exponential(_ratio(losses, counts))
    if name == "token_accuracy" and scores.right is not None:
        return _ratio(np.array(scores.right)[rows], counts)
    info = METRICS.get(scores.kind, {}).get(name)
    if info is None or info.function is None or scores.predictions is None or scores.references is None:
        known = ["loss", *METRICS.get(scores.kind, {})]
        raise UserError(
            f"these scores have no metric {name!r}",
            suggestion=f"put it into training.metrics; for {scores.kind} predictions there are {', '.join(known)}",
        )
    predictions = [scores.predictions[row] for row in rows]
    references = [scores.references[row] for row in rows]
    maker = _MAKERS.get((scores.kind, name)) or _MAKERS.get(("", name))
    if maker is not None and rows.size:
        return maker(predictions, references)
    return _repeated(lambda p, r: float(info.function(p, r)[name]), predictions, references)  # type: ignore[misc]


def _ratio(above: Array, below: Array) -> WeightedMetric:
    def metric(weights: Array) -> Array:
        return divided(weights @ above, weights @ below)

    return metric


def _exponential(inner: WeightedMetric) -> WeightedMetric:
    def metric(weights: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.exp(inner(weights))

    return metric


def _repeated(
    function: Callable[[Sequence[Any], Sequence[Any]], float], predictions: list[Any], references: list[Any]
) -> WeightedMetric:
    """Return a metric that is computed on rows that are repeated as often as they were drawn."""

    def metric(weights: Array) -> Array:
        found = []
        for draw in weights:
            rows = np.repeat(np.arange(len(draw)), draw.astype(int))
            found.append(function([predictions[row] for row in rows], [references[row] for row in rows]))
        return np.array(found)

    return metric


def _mean_of_rows(name: str, kind: str) -> Callable[[list[Any], list[Any]], WeightedMetric]:
    """Return what makes the mean of the metric's own values for single rows."""

    def maker(predictions: list[Any], references: list[Any]) -> WeightedMetric:
        function = METRICS[kind][name].function
        assert function is not None  # its callers name only metrics of predictions
        values = [function([p], [r])[name] for p, r in zip(predictions, references, strict=True)]
        return _ratio(np.array(values, dtype=float), np.ones(len(values)))

    return maker


def _mean_of_kind(column: int, *, good: bool) -> Callable[[list[Any], list[Any]], WeightedMetric]:
    """Return what makes the mean reward (column 0), or log-probability (1), of the good or of the bad answers."""

    def maker(predictions: list[Any], references: list[Any]) -> WeightedMetric:
        own = np.array([bool(label) == good for _, label in predictions], dtype=float)
        values = np.array([row[0] for row in (references if column else predictions)], dtype=float)
        return _ratio(values * own, own)

    return maker


def _answers_apart(predictions: list[Any], references: list[Any]) -> WeightedMetric:
    good, bad = (_mean_of_kind(0, good=kind)(predictions, references) for kind in (True, False))
    return lambda weights: good(weights) - bad(weights)


def _tag_accuracy(predictions: list[list[str]], references: list[list[str]]) -> WeightedMetric:
    right = [sum(p == r for p, r in zip(*row, strict=True)) for row in zip(predictions, references, strict=True)]
    return _ratio(np.array(right, dtype=float), np.array([len(row) for row in references], dtype=float))


def _moments(finish: Callable[..., Array]) -> Callable[[list[Any], list[Any]], WeightedMetric]:
    """Return what makes a function of the sums of 1, x, y, x^2, y^2 and x * y; x is predicted, y is true."""

    def maker(predictions: list[Any], references: list[Any]) -> WeightedMetric:
        x, y = np.array(predictions, dtype=float), np.array(references, dtype=float)
        shift = float(y.mean())
        x, y = x - shift, y - shift  # small numbers: less is lost in differences of squares
        columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
        return lambda weights: finish(*(weights @ columns).T)

    return maker


def _pearson(n: Array, x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    return divided(xy - x * y / n, np.sqrt(_spread(n, x, xx) * _spread(n, y, yy)))


def _spread(n: Array, x: Array, xx: Array) -> Array:
    """Return the sum of squares around the mean; 0 where it is a rounding error, as of values that are all equal."""
    around = xx - x * x / n
    return np.where(around > 1e-12 * xx, around, 0.0)


def _r2(n: Array, _x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    return 1 - divided(xx - 2 * xy + yy, yy - y * y / n)


def _rmse(predictions: list[Any], references: list[Any]) -> WeightedMetric:
    inner = _mean_of_rows("mse", "regression")(predictions, references)
    return lambda weights: np.sqrt(inner(weights))


def _spearman(predictions: list[Any], references: list[Any]) -> WeightedMetric:
    x, y = np.array(predictions, dtype=float), np.array(references, dtype=float)

    def metric(weights: Array) -> Array:
        ranks = _drawn_ranks(x, weights), _drawn_ranks(y, weights)
        n = weights.sum(1)
        first, second = (rank - ((weights * rank).sum(1) / n)[:, None] for rank in ranks)
        spread = (weights * first**2).sum(1) * (weights * second**2).sum(1)
        return divided((weights * first * second).sum(1), np.sqrt(spread))

    return metric


def _drawn_ranks(values: Array, weights: Array) -> Array:
    """Return the mean rank of each row among the drawn ones, equal values sharing theirs: (draws, rows)."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Array = (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, group]
    return ranks


_MAKERS: dict[tuple[str, str], Callable[[list[Any], list[Any]], WeightedMetric]] = {
    **{("single_label", name): by_class(of_classes, finish) for name, finish in SINGLE_LABEL.items()},
    **{("multi_label", name): by_class(of_columns, finish) for name, finish in MULTI_LABEL.items()},
    **{("tags", name): by_class(of_entities, finish) for name, finish in ENTITIES.items()},
    ("tags", "accuracy"): _tag_accuracy,
    **{(kind, "accuracy"): _mean_of_rows("accuracy", kind) for kind in ("single_label", "multi_label")},
    **{("regression", name): _mean_of_rows(name, "regression") for name in ("mse", "mae")},
    ("regression", "rmse"): _rmse,
    ("regression", "pearson"): _moments(_pearson),
    ("regression", "r2"): _moments(_r2),
    ("regression", "spearman"): _spearman,
    **{("text", name): _mean_of_rows(name, "text") for name in ("rouge1", "rouge2", "rougeL", "exact_match")},
    **{("preferences", name): _mean_of_rows(name, "preferences") for name in OWN_METRICS["preferences"]},
    ("answers", "rewards_margins"): _answers_apart,
    ("answers", "rewards_chosen"): _mean_of_kind(0, good=True),
    ("answers", "rewards_rejected"): _mean_of_kind(0, good=False),
    ("answers", "logps_chosen"): _mean_of_kind(1, good=True),
    ("answers", "logps_rejected"): _mean_of_kind(1, good=False),
    ("answers", "kl"): _mean_of_rows("kl", "answers"),
    ("text", "bleu"): bleu_sums,
    ("text", "chrf"): chrf_sums,
}  # fmt: skip
