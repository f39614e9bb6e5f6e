"""The metrics: what each measures, for which kind of prediction, computed by libraries that keep them.

Libraries are imported on use: `peft validate` reads the names.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from numbers import Real
from typing import Any

from peftcli.errors import Problem
from peftcli.recipe.entry_points import Plugin, WithPlugins, plugin
from peftcli.suggestions import did_you_mean, nearest
from peftcli.tasks.preference_formulas import answers, answers_apart, divergence, preferred

Scores = dict[str, float]
Function = Callable[[Sequence[Any], Sequence[Any]], Scores]


@dataclass(frozen=True)
class MetricInfo:
    """One metric of one kind of prediction.

    Args:
        summary: one sentence.
        function: from predictions and references to values by name, without the `eval_` prefix; None for what the
            evaluation counts beside the loss, without predictions.
        package: what must be installed, if it is no core dependency of ours; a plug-in's package says that itself.
        falls: whether a smaller value is better.
        several: whether it gives several values, so that it cannot choose the best adapter.
    """

    summary: str
    function: Function | None
    package: str | None = None
    falls: bool = False
    several: bool = False


def _accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    right = sum(p == r for p, r in zip(predictions, _ints(references), strict=True))
    return {"accuracy": right / max(1, len(predictions))}


def _ints(rows: Sequence[Any]) -> list[Any]:
    """Return rows of 0.0 and 1.0 as integers; other rows as they are."""
    return [
        [int(v) for v in row] if isinstance(row, list) and row and isinstance(row[0], float) else row for row in rows
    ]


def _joined(rows: Sequence[Sequence[str]]) -> list[str]:
    return [tag for row in rows for tag in row]


def _tag_accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    right = [p == r for p, r in zip(_joined(predictions), _joined(references), strict=True)]
    return {"accuracy": sum(right) / len(right) if right else float("nan")}  # undefined where no word has a tag


def _over_classes(score: str, average: str, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return scikit-learn's F1, precision or recall; a class without decisions or rows counts 0."""
    from sklearn import metrics

    truth = _ints(references)
    if truth and isinstance(truth[0], list) and len(truth[0]) == 1:
        average = "binary"  # scikit-learn takes one column for two classes, and "none of them" is no class here
    return float(getattr(metrics, f"{score}_score")(truth, list(predictions), average=average, zero_division=0))


def _f1(average: str, name: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        return {name: _over_classes("f1", average, predictions, references)}

    return function


def _macro(name: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        return {name: _over_classes(name, "macro", predictions, references)}

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

    if len(set(references)) < 2 or not all(map(math.isfinite, [*predictions, *references])):
        return {"r2": float("nan")}  # undefined without spread; scikit-learn refuses other numbers
    return {"r2": float(r2_score(list(references), list(predictions)))}


def _rmse(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    return {"rmse": _error(2, "mse")(predictions, references)["mse"] ** 0.5}


_SCHEME = re.compile(r"([BIMELSUW])(?:[-_](.*))?", re.IGNORECASE | re.DOTALL)
_IN_IOBES = {"M": "I", "L": "E", "U": "S", "W": "S"}
"""Letters of BMES, BILOU and BMEWO that mean the same as others of IOBES."""


def entity_tags(tags: Sequence[str]) -> list[str]:
    """Return the tags of a row as IOBES, which seqeval reads rightly.

    Of a tag without a scheme's letter each run is an entity. seqeval would take the first letter of any tag for one:
    `ORG` would lie outside of all entities, and BILOU's `U-PER U-PER` would be one entity.
    """
    found = []
    for tag in tags:
        parts = _SCHEME.fullmatch(tag)
        if tag.upper() == "O":
            found.append("O")
        elif parts is None:
            found.append(f"I-{tag}")
        else:
            letter = parts[1].upper()
            found.append(f"{_IN_IOBES.get(letter, letter)}-{parts[2] or '_'}")
    return found


def _entities(score: str, average: str, name: str) -> Function:
    """Return a metric over whole entities, not tags."""

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        import warnings

        from seqeval import metrics

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual tags
            truth, found = ([entity_tags(row) for row in rows] for rows in (references, predictions))
            value = getattr(metrics, score)(truth, found, average=average, zero_division=0)
        return {name: float(value)}

    return function


def _bleu(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import sacrebleu

    words = bleu_words(references)
    return {"bleu": float(sacrebleu.corpus_bleu(list(predictions), [list(references)], tokenize=words).score)}


def _chrf(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    import sacrebleu

    return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(references)]).score)}


_ALONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Characters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters."""

_NOT_CHINESE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]")
"""Those of them that are no Chinese characters."""


def bleu_words(references: Sequence[str]) -> str:
    """Return the name of sacrebleu's way to divide these texts into words.

    Its usual one divides at spaces: where most letters are of a script without them, a sentence would be one word.
    """
    letters = [letter for text in references for letter in text if letter.isalpha()]
    alone = [letter for letter in letters if _ALONE.match(letter)]
    if 2 * len(alone) <= len(letters):
        return "13a"
    return "char" if 10 * sum(map(bool, map(_NOT_CHINESE.match, alone))) > len(alone) else "zh"


class WordsForRouge:
    """The words of a text in any script: runs of letters and digits, in small letters.

    rouge_score's own words are of a to z and 0 to 9, so that Russian, Greek or Arabic texts have none. Texts of ASCII
    have the same words here. Where a script puts no spaces between words, each character counts as one.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words."""
        if text.isascii():
            return re.findall("[a-z0-9]+", text.lower())
        words: list[str] = []
        goes_on = False  # whether a letter would be part of the last word
        for character in unicodedata.normalize("NFC", text.lower()):
            kind, alone = unicodedata.category(character)[0], bool(_ALONE.match(character))
            if (words and kind == "M") or (kind in "LN" and goes_on and not alone):
                words[-1] += character
            elif kind in "LN":
                words.append(character)
                goes_on = not alone
            else:
                goes_on = False
        return words


def _rouge(*names: str) -> Function:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(names), tokenizer=WordsForRouge())
        rows = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
        return {name: sum(row[name].fmeasure for row in rows) / max(1, len(rows)) for name in names}

    return function


def _exact_match(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    right = sum(str(p).strip() == str(r).strip() for p, r in zip(predictions, references, strict=True))
    return {"exact_match": right / max(1, len(predictions))}


_CLASSES = {
    "accuracy": MetricInfo("share of rows that are exactly right", _accuracy),
    "f1": MetricInfo("mean of the classes' F1", _f1("macro", "f1")),
    "f1_macro": MetricInfo("mean of the classes' F1", _f1("macro", "f1_macro")),
    "f1_micro": MetricInfo("F1 over all decisions", _f1("micro", "f1_micro")),
    "f1_weighted": MetricInfo("F1 of the classes, weighted by their rows", _f1("weighted", "f1_weighted")),
    "precision": MetricInfo("mean of the classes' precision", _macro("precision")),
    "recall": MetricInfo("mean of the classes' recall", _macro("recall")),
}

OWN_METRICS: dict[str, dict[str, MetricInfo]] = {
    "single_label": {**_CLASSES, "mcc": MetricInfo("Matthews correlation", _mcc)},
    "multi_label": _CLASSES,
    "regression": {
        "mse": MetricInfo("mean squared error", _error(2, "mse"), falls=True),
        "rmse": MetricInfo("root of the mean squared error", _rmse, falls=True),
        "mae": MetricInfo("mean absolute error", _error(1, "mae"), falls=True),
        "r2": MetricInfo("share of the variance that is explained", _r2),
        "pearson": MetricInfo("linear correlation", _correlation("pearson")),
        "spearman": MetricInfo("rank correlation", _correlation("spearman")),
    },
    "tags": {
        "accuracy": MetricInfo("share of right tags", _tag_accuracy),
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
        "rouge": MetricInfo(
            "ROUGE-1, -2 and -L F-measures", _rouge("rouge1", "rouge2", "rougeL"), "rouge_score", several=True
        ),
        "rouge1": MetricInfo("ROUGE-1 F-measure", _rouge("rouge1"), "rouge_score"),
        "rouge2": MetricInfo("ROUGE-2 F-measure", _rouge("rouge2"), "rouge_score"),
        "rougeL": MetricInfo("ROUGE-L F-measure", _rouge("rougeL"), "rouge_score"),
        "exact_match": MetricInfo("share of texts that are exactly right", _exact_match),
        "perplexity": MetricInfo("exponential of the loss", None, falls=True),
        "token_accuracy": MetricInfo("share of supervised tokens that are the likeliest ones", None),
    },
    "preferences": {
        "rewards_accuracies": MetricInfo(
            "share of pairs whose chosen answer has the larger reward",
            preferred("rewards_accuracies", lambda rewards, _: rewards[0] > rewards[1]),
        ),
        "rewards_margins": MetricInfo(
            "mean of the chosen answer's reward less the rejected one's",
            preferred("rewards_margins", lambda rewards, _: rewards[0] - rewards[1]),
        ),
        "rewards_chosen": MetricInfo(
            "mean reward of the chosen answers", preferred("rewards_chosen", lambda rewards, _: rewards[0])
        ),
        "rewards_rejected": MetricInfo(
            "mean reward of the rejected answers", preferred("rewards_rejected", lambda rewards, _: rewards[1])
        ),
        "logps_chosen": MetricInfo(
            "mean log-probability of the chosen answers", preferred("logps_chosen", lambda _, logps: logps[0])
        ),
        "logps_rejected": MetricInfo(
            "mean log-probability of the rejected answers", preferred("logps_rejected", lambda _, logps: logps[1])
        ),
    },
    "answers": {
        "rewards_margins": MetricInfo("mean reward of the good answers less that of the bad ones", answers_apart),
        "rewards_chosen": MetricInfo(
            "mean reward of the good answers", answers("rewards_chosen", "rewards", good=True)
        ),
        "rewards_rejected": MetricInfo(
            "mean reward of the bad answers", answers("rewards_rejected", "rewards", good=False)
        ),
        "logps_chosen": MetricInfo(
            "mean log-probability of the good answers", answers("logps_chosen", "logps", good=True)
        ),
        "logps_rejected": MetricInfo(
            "mean log-probability of the bad answers", answers("logps_rejected", "logps", good=False)
        ),
        "kl": MetricInfo(
            "estimate of the divergence from the reference, from mismatched prompts and answers", divergence, falls=True
        ),
    },
}
"""The metrics of each kind of prediction, in the order of the documentation. A new metric is one line here."""


def own_names() -> set[str]:
    """Return the names of our own metrics, of all kinds of prediction."""
    return {name for metrics in OWN_METRICS.values() for name in metrics} | {"loss"}


def metrics_of_plugin(name: str) -> dict[str, MetricInfo]:
    """Return the metric of that name that an installed package offers, by kind of prediction; {} if there is none.

    Raises:
        UserError: the package cannot be imported, holds something else, or takes one of our names.
    """
    found = plugin("metric", name, own_names())
    if found is None:
        return {}
    held = found.held("METRIC")
    if not isinstance(held, Mapping) or not held or not all(isinstance(info, MetricInfo) for info in held.values()):
        raise found.wrong("ends in no METRIC that is a mapping from kinds of prediction to MetricInfo")
    if unknown := set(held) - set(OWN_METRICS):
        kinds = ", ".join(OWN_METRICS)
        raise found.wrong(f"names unknown kinds of prediction: {', '.join(sorted(unknown))}", f"choose from: {kinds}")
    return {kind: _guarded(found, info) for kind, info in held.items()}


def _guarded(found: Plugin, info: MetricInfo) -> MetricInfo:
    """Return a plug-in's metric, whose errors and odd values are told with the package's name."""
    if info.function is None:
        raise found.wrong("has a METRIC without a function")
    inner = found.guarded(info.function)

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        values = inner(predictions, references)
        numbers = isinstance(values, Mapping) and all(isinstance(value, Real) for value in values.values())
        if not numbers or not (info.several or set(values) == {found.name}):
            raise found.wrong(f"returned {values!r:.80}; expected {{{found.name!r}: a number}}")
        return {str(name): float(value) for name, value in values.items()}

    return replace(info, function=function)


def _of_kind(kind: str, name: str) -> MetricInfo | None:
    return None if name in own_names() else metrics_of_plugin(name).get(kind)  # ours, of another kind, are no plug-in's


METRICS: dict[str, Mapping[str, MetricInfo]] = {
    kind: WithPlugins(metrics, partial(_of_kind, kind)) for kind, metrics in OWN_METRICS.items()
}
"""The same, and those of plug-ins, which are looked up for other names; iterating gives our own."""


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
            extra = "peftcli[metrics]" if name in own_names() else info.package
            remedy = f'python -m pip install "{extra}"'
            problems.append(Problem(f"{name} needs the package {info.package}", key=key, suggestion=remedy))
    return problems
