"""Metrics of drawn rows: each equals the metric's own function on rows that are really repeated."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from peftcli.errors import UserError
from peftcli.inference.metrics import compute_metrics
from peftcli.inference.row_scores import RowScores
from peftcli.record.step_lines import finite
from peftcli.studies.evidence.metric_sums import scored_rows
from peftcli.tasks.metric_table import METRICS
from tests.studies.evidence.scores import with_losses

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "very", "green", "house"]
TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y", "B-Z", "ORG", "U-X", "L-X"]


def decided(kind: str, draw: random.Random, rows: int = 30) -> tuple[list, list]:
    """Return predictions and references that agree often, equal values among them."""
    if kind == "single_label":
        truth = [draw.choice([0, 1, 1, 2, 3]) for _ in range(rows)]
        return [t if draw.random() < 0.6 else draw.choice([0, 1, 2, 4]) for t in truth], truth
    if kind == "multi_label":
        truth = [[float(draw.random() < p) for p in (0.5, 0.2, 0.0)] for _ in range(rows)]
        return [[int(v if draw.random() < 0.7 else 1 - v) for v in row] for row in truth], truth
    if kind == "regression":
        truth = [draw.choice([0.0, 0.5, 1.0, 3.25]) for _ in range(rows)]
        return [round(t + draw.gauss(0, 1), 1) for t in truth], truth
    if kind == "tags":
        truth = [[draw.choice(TAGS) for _ in range(draw.randint(1, 6))] for _ in range(rows)]
        return [[t if draw.random() < 0.7 else draw.choice(TAGS) for t in row] for row in truth], truth
    if kind == "preferences":  # rewards and log-probabilities of both answers
        rewards, logps = ([[draw.gauss(0, 1), draw.gauss(0, 1)] for _ in range(rows)] for _ in range(2))
        return rewards, logps
    if kind == "answers":  # reward and label, log-probability and divergence
        return [[draw.gauss(0, 1), float(i % 2)] for i in range(rows)], [[draw.gauss(0, 1), 0.5] for _ in range(rows)]
    truth = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 9))) for _ in range(rows)]
    return [t if draw.random() < 0.2 else " ".join(w for w in t.split() if draw.random() < 0.8) for t in truth], truth


EVERY = [(kind, name) for kind, infos in METRICS.items() for name, info in infos.items() if info.function]


@pytest.mark.parametrize(("kind", "name"), [each for each in EVERY if each != ("text", "rouge")])
def test_a_draw_is_the_metric_of_repeated_rows(kind: str, name: str) -> None:
    predictions, references = decided(kind, random.Random(name))
    scores = with_losses([1.0] * 30, kind=kind, predictions=predictions, references=references)
    rows = scored_rows(scores, f"eval_{name}")
    assert rows.value == pytest.approx(compute_metrics([name], kind, predictions, references)[name])
    draws = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=12).astype(float)
    draws[0] = 0
    draws[0, 3] = 30  # one row alone
    for weights, found in zip(draws, rows.of_rows(draws), strict=True):
        drawn = np.repeat(np.arange(30), weights.astype(int))
        known = compute_metrics([name], kind, [predictions[i] for i in drawn], [references[i] for i in drawn])[name]
        if kind == "regression" and len({references[i] for i in drawn}) == 1 and name in ("r2", "pearson", "spearman"):
            continue  # undefined without spread
        if kind == "answers" and np.isnan(known):
            continue  # undefined without answers of the other kind
        assert found == pytest.approx(known, abs=1e-9), weights


def test_several_labels_of_which_there_is_one() -> None:
    predictions, references = [[0], [0], [1], [0]], [[0.0], [1.0], [1.0], [0.0]]
    scores = with_losses([1.0] * 4, kind="multi_label", predictions=predictions, references=references)
    for name in ("f1", "f1_micro", "f1_weighted", "precision", "recall", "accuracy"):
        known = compute_metrics([name], "multi_label", predictions, references)[name]
        assert scored_rows(scores, name).value == pytest.approx(known), name


def test_losses_are_ratios_of_sums_over_tokens_not_means_of_rows() -> None:
    scores = with_losses([2.0, 9.0], counts=[1.0, 9.0], right=[1.0, 3.0])
    assert scored_rows(scores, "eval_loss").value == pytest.approx(11 / 10)
    assert scored_rows(scores, "perplexity").value == pytest.approx(np.exp(11 / 10))
    assert scored_rows(scores, "eval_token_accuracy").value == pytest.approx(4 / 10)
    assert scored_rows(scores, "loss").of_rows(np.array([[2.0, 0.0], [0.0, 2.0]])).tolist() == [2.0, 1.0]


def test_a_named_set_has_its_own_rows_and_parts_of_a_row_stay_together() -> None:
    scores = with_losses([1.0, 2.0, 6.0, 8.0], sets={"news": 1, "web": 3}, places=[[0, 1], [1, 1], [1, 2], [1, 2]])
    web = scored_rows(scores, "eval_web_loss")
    assert web.value == pytest.approx(16 / 3) and web.clusters.tolist() == [0, 1, 1]
    assert scored_rows(scores, "eval_loss").value == pytest.approx(17 / 4)


def test_a_metric_that_was_not_asked_for_is_refused() -> None:
    scores: RowScores = with_losses([1.0])
    for name in ("eval_bleu", "token_accuracy", "eval_accurracy"):
        with pytest.raises(UserError, match=r"training\.metrics"):
            scored_rows(scores, name)


def test_where_the_name_of_a_set_begins_with_that_of_another_the_longer_one_is_meant() -> None:
    scores = with_losses([1.0, 2.0, 6.0], sets={"news": 1, "news_old": 2})
    assert scored_rows(scores, "eval_news_old_loss").value == 4.0 and scored_rows(scores, "eval_news_loss").value == 1.0


def test_a_correlation_with_equal_values_is_undefined_whatever_their_rounding() -> None:
    draw = random.Random(0)
    true = [draw.gauss(0, 1) for _ in range(50)]
    for equal in (0.1, 0.3, 4.123):
        scores = with_losses([1.0] * 50, kind="regression", predictions=[equal] * 50, references=true)
        assert np.isnan(scored_rows(scores, "pearson").value) and np.isnan(scored_rows(scores, "spearman").value)


def test_a_number_that_is_none_comes_back_from_its_file_as_one() -> None:
    scores = with_losses([1.0, float("nan")], kind="regression", predictions=[0.5, float("nan")], references=[0.0, 1.0])
    again = RowScores.from_dict(json.loads(json.dumps(finite(scores.as_dict()), allow_nan=False)))
    assert np.isnan(scored_rows(again, "eval_loss").value) and np.isnan(scored_rows(again, "mse").value)


def test_bleu_of_texts_without_spaces_has_the_words_of_an_evaluation() -> None:
    predictions, references = ["今天天气很好", "你好世界"], ["今天天气不好", "你好世界"]
    scores = with_losses([1.0] * 2, kind="text", predictions=predictions, references=references)
    known = compute_metrics(["bleu"], "text", predictions, references)["bleu"]
    assert known > 40 and scored_rows(scores, "bleu").value == pytest.approx(known)
