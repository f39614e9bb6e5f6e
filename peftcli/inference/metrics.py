"""Evaluation metrics by name, computed by libraries that keep them; imported on use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import TrainingSpec
from peftcli.suggestions import did_you_mean, nearest

Scores = dict[str, float]
Function = Callable[[Sequence[Any], Sequence[Any]], Scores]


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Args:
        summary: one sentence.
        function: from predictions and references to values by name, without the `eval_` prefix.
        package: what must be installed, if it is no core dependency.
    """

    summary: str
    function: Function
    package: str | None = None


def _accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    if predictions and isinstance(predictions[0], list) and predictions[0] and isinstance(predictions[0][0], str):
        predictions, references = _joined(predictions), _joined(references)
    right = sum(p == r for p, r in zip(predictions, _ints(references), strict=True))
    return {"accuracy": right / max(1, len(predictions))}


def _ints(rows: Sequence[Any]) -> list[Any]:
    """Return rows of 0.0 and 1.0 as integers; other rows as they are."""
    return [
        [int(v) for v in row] if isinstance(row, list) and row and isinstance(row[0], float) else row for row in rows
    ]


def _joined(rows: Sequence[Sequence[str]]) -> list[str]:
    return [tag for row in rows for tag in row]


def _f1(average: str, name: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        from sklearn.metrics import f1_score

        return {name: float(f1_score(_ints(references), list(predictions), average=average, zero_division=0))}

    return function


def _macro(name: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        from sklearn import metrics

        score = getattr(metrics, f"{name}_score")
        return {name: float(score(_ints(references), list(predictions), average="macro", zero_division=0))}

    return function


def _mcc(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    from sklearn.metrics import matthews_corrcoef

    return {"mcc": float(matthews_corrcoef(list(references), list(predictions)))}


def _correlation(name: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        from scipy import stats

        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return {name: float("nan")}  # undefined without spread
        return {name: float(getattr(stats, f"{name}r")(list(predictions), list(references)).statistic)}

    return function


def _error(power: int, name: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        import numpy as np

        gap = np.abs(np.asarray(predictions, dtype=float) - np.asarray(references, dtype=float)) ** power
        return {name: float(gap.mean()) if gap.size else float("nan")}

    return function


def _r2(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    from sklearn.metrics import r2_score

    return {"r2": float(r2_score(list(references), list(predictions))) if len(predictions) > 1 else float("nan")}


def _rmse(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    return {"rmse": _error(2, "mse")(predictions, references)["mse"] ** 0.5}


def _entities(score: str, average: str, name: str) -> Function:
    """Return a metric over whole entities (BIO, IOBES, ... tags), not tags."""

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        import warnings

        from seqeval import metrics

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tags without B- or I-: it counts each run of one as an entity
            value = getattr(metrics, score)(references, predictions, average=average, zero_division=0)
        return {name: float(value)}

    return function


def _bleu(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(list(predictions), [list(references)]).score)}


def _chrf(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import sacrebleu

    return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(references)]).score)}


def _rouge(*names: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(names), use_stemmer=False)
        rows = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
        return {name: sum(row[name].fmeasure for row in rows) / max(1, len(rows)) for name in names}

    return function


def _exact_match(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    right = sum(str(p).strip() == str(r).strip() for p, r in zip(predictions, references, strict=True))
    return {"exact_match": right / max(1, len(predictions))}


_ALL: dict[str, dict[str, MetricInfo]] = {
    "classes": {
        "accuracy": MetricInfo("share of rows that are exactly right", _accuracy),
        "f1": MetricInfo("mean of the classes' F1", _f1("macro", "f1")),
        "f1_macro": MetricInfo("mean of the classes' F1", _f1("macro", "f1_macro")),
        "f1_micro": MetricInfo("F1 over all decisions", _f1("micro", "f1_micro")),
        "f1_weighted": MetricInfo("F1 of the classes, weighted by their rows", _f1("weighted", "f1_weighted")),
        "precision": MetricInfo("mean of the classes' precision", _macro("precision")),
        "recall": MetricInfo("mean of the classes' recall", _macro("recall")),
    },
    "single_label": {"mcc": MetricInfo("Matthews correlation", _mcc)},
    "regression": {
        "mse": MetricInfo("mean squared error", _error(2, "mse")),
        "rmse": MetricInfo("root of the mean squared error", _rmse),
        "mae": MetricInfo("mean absolute error", _error(1, "mae")),
        "r2": MetricInfo("share of the variance that is explained", _r2),
        "pearson": MetricInfo("linear correlation", _correlation("pearson")),
        "spearman": MetricInfo("rank correlation", _correlation("spearman")),
    },
    "tags": {
        "accuracy": MetricInfo("share of right tags", _accuracy),
        "f1": MetricInfo("F1 over entities", _entities("f1_score", "micro", "f1"), "seqeval"),
        "f1_micro": MetricInfo("F1 over entities", _entities("f1_score", "micro", "f1_micro"), "seqeval"),
        "f1_macro": MetricInfo("mean F1 of the kinds of entity", _entities("f1_score", "macro", "f1_macro"), "seqeval"),
        "precision": MetricInfo(
            "precision over entities", _entities("precision_score", "micro", "precision"), "seqeval"
        ),
        "recall": MetricInfo("recall over entities", _entities("recall_score", "micro", "recall"), "seqeval"),
    },
    "text": {
        "bleu": MetricInfo("corpus BLEU, 0 to 100", _bleu, "sacrebleu"),
        "chrf": MetricInfo("corpus chrF, 0 to 100", _chrf, "sacrebleu"),
        "rouge": MetricInfo("ROUGE-1, -2 and -L F-measures", _rouge("rouge1", "rouge2", "rougeL"), "rouge_score"),
        "rouge1": MetricInfo("ROUGE-1 F-measure", _rouge("rouge1"), "rouge_score"),
        "rouge2": MetricInfo("ROUGE-2 F-measure", _rouge("rouge2"), "rouge_score"),
        "rougeL": MetricInfo("ROUGE-L F-measure", _rouge("rougeL"), "rouge_score"),
        "exact_match": MetricInfo("share of texts that are exactly right", _exact_match),
    },
}
METRICS: dict[str, dict[str, MetricInfo]] = {
    "single_label": _ALL["classes"] | _ALL["single_label"],
    "multi_label": _ALL["classes"],
    "regression": _ALL["regression"],
    "tags": _ALL["tags"],
    "text": _ALL["text"],
}
"""The metrics of each kind of prediction."""

ALWAYS = ("loss", "perplexity", "token_accuracy")
"""Names that come with the loss and are no functions of the predictions."""

LOWER_IS_BETTER = ("loss", "perplexity", "mse", "rmse", "mae")
"""Last words of the metrics that should fall; all others should rise."""


def greater_is_better(metric: str) -> bool:
    """Return the usual direction of a metric, such as `eval_loss` or `eval_news_f1_macro`."""
    return not any(metric == name or metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)


def metric_problems(names: Sequence[str], kind: str) -> list[Problem]:
    """Return what is wrong with `training.metrics` here: unknown names, other tasks' metrics, missing packages."""
    problems = []
    key = "training.metrics"
    for name in names:
        info = METRICS[kind].get(name)
        if info is None:
            choice = did_you_mean(nearest(name, METRICS[kind]), f"choose from: {', '.join(METRICS[kind])}")
            problems.append(Problem(f"{name!r} is no metric of {kind} predictions", key=key, suggestion=choice))
        elif info.package and find_spec(info.package) is None:
            remedy = 'python -m pip install "peftcli[metrics]"'
            problems.append(Problem(f"{name} needs the package {info.package}", key=key, suggestion=remedy))
    return problems


def wanted_metrics(default: Sequence[str], spec: TrainingSpec, sets: Sequence[str]) -> list[str]:
    """Return the metrics to compute: the task's, those asked for, and the one that chooses the adapter.

    Args:
        sets: names of the validation sets.
    """
    best = spec.metric_for_best_model.removeprefix("eval_")
    best = next((best.removeprefix(f"{name}_") for name in sets if name and best.startswith(f"{name}_")), best)
    return [name for name in dict.fromkeys([*default, *spec.metrics, best]) if name not in ALWAYS]


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
        scores.update(METRICS[kind][name].function(predictions, references))
    return scores
