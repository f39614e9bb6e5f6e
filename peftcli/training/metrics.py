"""Evaluation metrics by name, computed by libraries that keep them; imported on use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from peftcli.errors import Problem, UserError

Scores = dict[str, float]
Function = Callable[[Sequence[Any], Sequence[Any]], Scores]


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Args:
        summary: one sentence.
        kinds: the tasks' `metric_kind`s it is for.
        function: from predictions and references to values by name, without the `eval_` prefix.
        package: what must be installed, if it is no core dependency.
        greater_is_better: the direction of its main value.
    """

    summary: str
    kinds: tuple[str, ...]
    function: Function
    package: str | None = None
    greater_is_better: bool = True


CLASSES = ("single_label", "multi_label")


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


def _seqeval(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import warnings

    from seqeval.metrics import f1_score, precision_score, recall_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tags without B- or I-, which it then counts as one-word entities
        return {
            "f1": float(f1_score(references, predictions, zero_division=0)),
            "precision": float(precision_score(references, predictions, zero_division=0)),
            "recall": float(recall_score(references, predictions, zero_division=0)),
        }


def _bleu(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(list(predictions), [list(references)]).score)}


def _chrf(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import sacrebleu

    return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(references)]).score)}


def _rouge(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=False)
    rows = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {name: sum(row[name].fmeasure for row in rows) / max(1, len(rows)) for name in names}


def _exact_match(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    right = sum(str(p).strip() == str(r).strip() for p, r in zip(predictions, references, strict=True))
    return {"exact_match": right / max(1, len(predictions))}


METRICS: dict[str, MetricInfo] = {
    "accuracy": MetricInfo("share of right rows (of right tags)", (*CLASSES, "tags"), _accuracy),
    "f1": MetricInfo("macro F1", CLASSES, _f1("macro", "f1")),
    "f1_macro": MetricInfo("mean of the classes' F1", CLASSES, _f1("macro", "f1_macro")),
    "f1_micro": MetricInfo("F1 over all decisions", CLASSES, _f1("micro", "f1_micro")),
    "f1_weighted": MetricInfo("F1 of the classes, weighted by their rows", CLASSES, _f1("weighted", "f1_weighted")),
    "precision": MetricInfo("macro precision", CLASSES, _macro("precision")),
    "recall": MetricInfo("macro recall", CLASSES, _macro("recall")),
    "mcc": MetricInfo("Matthews correlation", ("single_label",), _mcc),
    "pearson": MetricInfo("linear correlation", ("regression",), _correlation("pearson")),
    "spearman": MetricInfo("rank correlation", ("regression",), _correlation("spearman")),
    "mse": MetricInfo("mean squared error", ("regression",), _error(2, "mse"), greater_is_better=False),
    "mae": MetricInfo("mean absolute error", ("regression",), _error(1, "mae"), greater_is_better=False),
    "seqeval": MetricInfo("entity F1, precision and recall", ("tags",), _seqeval, "seqeval"),
    "bleu": MetricInfo("corpus BLEU, 0 to 100", ("text",), _bleu, "sacrebleu"),
    "chrf": MetricInfo("corpus chrF, 0 to 100", ("text",), _chrf, "sacrebleu"),
    "rouge": MetricInfo("ROUGE-1, -2 and -L F-measures", ("text",), _rouge, "rouge_score"),
    "exact_match": MetricInfo("share of texts that are exactly right", ("text",), _exact_match),
}

LOWER_IS_BETTER = ("loss", "perplexity", "mse", "mae")
"""Last words of the metrics that should fall; all others should rise."""


def greater_is_better(metric: str) -> bool:
    """Return the usual direction of a metric, such as `eval_loss` or `eval_news_f1_macro`."""
    return not any(metric == name or metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)


def metric_problems(names: Sequence[str], kind: str) -> list[Problem]:
    """Return what is wrong with `training.metrics` for a task: unknown names, other tasks' metrics, missing packages."""
    from importlib.util import find_spec

    problems = []
    fitting = [name for name, info in METRICS.items() if kind in info.kinds]
    for name in names:
        info = METRICS.get(name)
        key = "training.metrics"
        if info is None or kind not in info.kinds:
            near = get_close_matches(name, fitting, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            what = f"there is no metric {name!r}" if info is None else f"{name} is not for {kind} predictions"
            problems.append(Problem(what, key=key, suggestion=f"{hint}choose from: {', '.join(fitting)}"))
        elif info.package and find_spec(info.package) is None:
            remedy = 'python -m pip install -e ".[metrics]"'
            problems.append(Problem(f"{name} needs the package {info.package}", key=key, suggestion=remedy))
    return problems


def compute_metrics(names: Sequence[str], kind: str, predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Return the values of the named metrics.

    Raises:
        UserError: a name is unknown, is for another task, or its package is missing.
    """
    problems = metric_problems(names, kind)
    if problems:
        raise UserError(problems)
    scores: Scores = {}
    for name in dict.fromkeys(names):
        scores.update(METRICS[name].function(predictions, references))
    return scores
