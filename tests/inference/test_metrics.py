"""Metrics: each against a value worked out by hand, and the names that a task may ask for."""

from __future__ import annotations

import math

import pytest

from peftcli.errors import UserError
from peftcli.inference.metrics import compute_metrics, greater_is_better, wanted_metrics
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.metric_table import METRICS, bleu_words

CLASSES = ([0, 1, 2, 2], [0, 1, 1, 2])  # predictions, references: three of four right
SINGLE = ([[1.5, 1.0], [-0.5, 0.0], [0.5, 1.0]], [[-2.0, 0.25], [-7.0, 0.25], [-4.0, 0.25]])
PAIRS = ([[1.0, 0.0], [0.0, 2.0]], [[-1.0, -3.0], [-3.0, -5.0]])
TAGS = ([["B-X", "I-X", "O"], ["O", "B-Y"]], [["B-X", "I-X", "O"], ["B-Y", "B-Y"]])


@pytest.mark.parametrize(
    ("kind", "name", "rows", "expected"),
    [
        ("single_label", "accuracy", CLASSES, 0.75),
        ("single_label", "f1_macro", CLASSES, (1 + 2 / 3 + 2 / 3) / 3),
        ("single_label", "f1", CLASSES, (1 + 2 / 3 + 2 / 3) / 3),
        ("single_label", "f1_micro", CLASSES, 0.75),
        ("single_label", "f1_weighted", CLASSES, (1 + 2 * 2 / 3 + 2 / 3) / 4),
        ("single_label", "precision", CLASSES, (1 + 1 + 0.5) / 3),
        ("single_label", "recall", CLASSES, (1 + 0.5 + 1) / 3),
        ("single_label", "mcc", ([0, 1, 0, 1], [0, 1, 0, 1]), 1.0),
        ("multi_label", "accuracy", ([[1, 0], [1, 1]], [[1.0, 0.0], [0.0, 1.0]]), 0.5),
        ("multi_label", "f1_micro", ([[1, 0], [1, 1]], [[1.0, 0.0], [0.0, 1.0]]), 0.8),
        ("multi_label", "f1_micro", ([[0], [0], [1], [0]], [[0.0], [1.0], [1.0], [0.0]]), 2 / 3),  # of one class
        ("multi_label", "precision", ([[0], [0], [1], [0]], [[0.0], [1.0], [1.0], [0.0]]), 1.0),
        ("multi_label", "f1_macro", ([[0], [0]], [[0.0], [0.0]]), 0.0),
        ("regression", "mse", ([1.0, 3.0], [1.0, 1.0]), 2.0),
        ("regression", "rmse", ([1.0, 3.0], [1.0, 1.0]), math.sqrt(2)),
        ("regression", "mae", ([1.0, 3.0], [1.0, 1.0]), 1.0),
        ("regression", "r2", ([1.0, 2.0, 2.0], [1.0, 2.0, 3.0]), 0.5),
        ("regression", "pearson", ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), 1.0),
        ("regression", "spearman", ([1.0, 2.0, 30.0], [2.0, 4.0, 6.0]), 1.0),
        ("tags", "accuracy", TAGS, 0.8),
        ("tags", "accuracy", ([[], ["A", "B", "C", "D"]], [[], ["A", "X", "X", "X"]]), 0.25),
        ("tags", "precision", TAGS, 1.0),
        ("tags", "recall", TAGS, 2 / 3),
        ("tags", "f1", TAGS, 0.8),
        ("tags", "f1_micro", TAGS, 0.8),
        ("tags", "f1_macro", TAGS, (1 + 2 / 3) / 2),
        ("tags", "recall", ([["O", "PER", "O"]], [["ORG", "PER", "O"]]), 0.5),  # tags without a scheme's letter
        ("tags", "f1", ([["BRAND", "BRAND"]], [["BRAND", "O"]]), 0.0),  # a run is one entity
        ("tags", "recall", ([["B-PER", "L-PER", "O"]], [["U-PER", "U-PER", "O"]]), 0.0),  # BILOU
        ("tags", "recall", ([["U-PER", "B-PER", "L-PER"]], [["U-PER", "B-PER", "L-PER"]]), 1.0),
        ("text", "exact_match", (["a b", "c "], ["a b", "d"]), 0.5),
        ("text", "rouge1", (["the cat sat"], ["the cat"]), 0.8),
        ("text", "rouge2", (["the cat sat"], ["the cat"]), 2 / 3),
        ("text", "rougeL", (["the cat sat"], ["the cat"]), 0.8),
        ("text", "rouge1", (["Кот сел"], ["кот"]), 2 / 3),
        ("text", "rouge1", (["für"], ["fr"]), 0.0),
        ("text", "rouge1", (["你好吗"], ["你好"]), 0.8),
        ("text", "rouge1", (["हिन्दी का"], ["हिन्दी"]), 2 / 3),  # vowel signs are part of a word
        ("text", "rouge2", (["Don't go_on, U.S."], ["don t go on u s"]), 1.0),  # ASCII as rouge_score has it
        ("text", "bleu", (["the cat sat on the mat"], ["the cat sat on the mat"]), 100.0),
        ("text", "bleu", (["今天天气很好"], ["今天天气不好"]), 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        ("text", "bleu", (["今日はいい天気です"], ["今日はいい天気です"]), 100.0),
        ("text", "chrf", (["the cat"], ["the cat"]), 100.0),
        ("preferences", "rewards_accuracies", PAIRS, 0.5),
        ("preferences", "rewards_margins", PAIRS, -0.5),
        ("preferences", "rewards_chosen", PAIRS, 0.5),
        ("preferences", "rewards_rejected", PAIRS, 1.0),
        ("preferences", "logps_chosen", PAIRS, -2.0),
        ("preferences", "logps_rejected", PAIRS, -4.0),
        ("answers", "rewards_margins", SINGLE, 1.5),
        ("answers", "rewards_chosen", SINGLE, 1.0),
        ("answers", "rewards_rejected", SINGLE, -0.5),
        ("answers", "logps_chosen", SINGLE, -3.0),
        ("answers", "logps_rejected", SINGLE, -7.0),
        ("answers", "kl", SINGLE, 0.25),
    ],
)
def test_by_hand(kind, name, rows, expected) -> None:
    assert compute_metrics([name], kind, *rows)[name] == pytest.approx(expected)


def test_without_spread_or_with_a_value_that_is_no_number_there_is_no_share_of_the_variance() -> None:
    for rows in (([float("nan"), 1.0], [1.0, 2.0]), ([float("inf"), 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 3.0])):
        assert math.isnan(compute_metrics(["r2"], "regression", *rows)["r2"])


def test_the_accuracy_of_no_tags_is_undefined() -> None:
    assert math.isnan(compute_metrics(["accuracy"], "tags", [[], []], [[], []])["accuracy"])


def test_the_words_of_bleu_are_those_of_the_script_that_most_letters_have() -> None:
    for text in ("the cat", "", "名字是 Anna Maria", "Имя"):
        assert bleu_words([text]) == "13a"
    assert [bleu_words([text]) for text in ("世界你好", "今日はいい", "สวัสดี")] == ["zh", "char", "char"]


def test_rouge_gives_all_three() -> None:
    assert set(compute_metrics(["rouge"], "text", ["a"], ["a"])) == {"rouge1", "rouge2", "rougeL"}


def test_every_metric_has_a_value_here() -> None:
    here = {(case[0], case[1]) for mark in test_by_hand.pytestmark for case in mark.args[1]}
    every = {(kind, name) for kind, infos in METRICS.items() for name, info in infos.items() if info.function}
    same_code = {("multi_label", name) for name in METRICS["multi_label"]}
    assert every - same_code - here == {("text", "rouge")}


def test_wrong_names_and_missing_packages_say_what_to_do(monkeypatch) -> None:
    with pytest.raises(UserError, match="did you mean accuracy"):
        compute_metrics(["acuracy"], "single_label", [0], [0])
    import peftcli.tasks.metric_table as metrics

    monkeypatch.setattr(metrics, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"needs the package seqeval.*\n.*pip install"):
        compute_metrics(["f1"], "tags", [["O"]], [["O"]])


def test_what_is_computed_holds_the_one_that_chooses() -> None:
    spec = TrainingSpec(metrics=["mcc"], metric_for_best_model="eval_news_f1_macro")
    assert wanted_metrics(("accuracy",), spec, ["", "news"]) == ["accuracy", "mcc", "f1_macro"]
    assert wanted_metrics((), TrainingSpec(metrics=["perplexity"]), [""]) == []
    older = TrainingSpec(metric_for_best_model="eval_news_old_f1")
    assert wanted_metrics((), older, ["news", "news_old"]) == ["f1"]


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("eval_loss", False), ("eval_news_loss", False), ("eval_perplexity", False), ("eval_mse", False),
     ("eval_accuracy", True), ("eval_news_f1_macro", True), ("eval_pearson", True)],
)  # fmt: skip
def test_directions(metric, greater) -> None:
    assert greater_is_better(metric) is greater
