"""The rate search: the window, who is stopped halfway, and what is tried beyond an edge."""

from __future__ import annotations

import pytest

from peftcli.studies.compare.rate_search import (
    HalfwayStop,
    best_rate,
    beyond,
    chosen_rate,
    clear_difference,
    rate_window,
)
from peftcli.studies.engine.trial import CurvePoint, Trial


def test_the_window_starts_in_the_middle_and_neighbours_differ_by_three() -> None:
    assert rate_window(2e-3, 3) == [2e-3, 6.7e-4, 6e-3]
    assert rate_window(1e-4, 5) == [1e-4, 3.3e-5, 3e-4, 1.1e-5, 9e-4]
    assert rate_window(1e-3, 1) == [1e-3]
    assert rate_window(2.345e-4, 3) == [2.345e-4, 7.8e-5, 7e-4], "what a recipe asks for is tried as it is"
    assert max(rate_window(90.0, 3)) == 100.0


@pytest.mark.parametrize(
    ("scores", "greater", "expected"),
    [
        ({1.0: 0.5, 3.0: 0.4, 9.0: 0.6}, False, None),
        ({1.0: 0.5, 3.0: 0.4, 9.0: 0.3}, False, 27.0),
        ({1.0: 0.2, 3.0: 0.4, 9.0: 0.6}, False, 0.33),
        ({1.0: 0.5, 3.0: 0.6, 9.0: 0.7}, True, 27.0),
        ({1.0: None, 3.0: None, 9.0: None}, False, 0.33),
        ({1.0: 0.5, 3.0: 0.4, 9.0: 0.3, 27.0: 0.2}, False, 81.0),
        ({1.0: 0.5, 3.0: 0.4, 9.0: 0.3, 27.0: 0.2, 81.0: 0.1}, False, None),
        ({1.0: 0.5, 3.0: 0.4, 100.0: 0.3}, False, None),
    ],
)
def test_beyond_the_edge_twice_at_most(scores, greater, expected) -> None:
    assert beyond(scores, 3, greater_is_better=greater) == expected


def test_of_equal_scores_the_lowest_rate_wins_and_none_without_scores() -> None:
    assert best_rate({3.0: 0.4, 1.0: 0.4, 9.0: None}, greater_is_better=False) == 1.0
    assert best_rate({3.0: None}, greater_is_better=False) is None


def test_of_rates_that_score_alike_the_one_next_to_the_middle_is_taken() -> None:
    def choose(**scores: float | None) -> float | None:
        found = {float(rate.removeprefix("r")): score for rate, score in scores.items()}
        return chosen_rate(found, 3.0, "eval_loss", 128, greater_is_better=False)

    assert choose(r1=1.588, r3=1.590, r9=None) == 3.0, "nothing has been learned yet"
    assert choose(r1=1.588, r3=1.590, r9=1.40) == 9.0
    assert choose(r1=1.57, r3=1.61, r9=1.60) == 1.0
    assert choose(r1=None, r3=None) is None
    assert chosen_rate({1.0: 0.70, 3.0: 0.69}, 3.0, "eval_accuracy", 128, greater_is_better=True) == 3.0
    assert chosen_rate({1.0: 0.80, 3.0: 0.69}, 3.0, "eval_accuracy", 128, greater_is_better=True) == 1.0


@pytest.mark.parametrize(
    ("metric", "value", "rows", "expected"),
    [("eval_loss", 2.0, 128, 0.1), ("eval_news_loss", 2.0, 128, 0.1), ("eval_accuracy", 0.5, 100, 0.1),
     ("eval_mcc", 0.5, 100, 0.2), ("eval_accuracy", 0.5, 0, 1.0)],
)  # fmt: skip
def test_a_difference_is_clear_by_the_rows_or_by_a_share_of_the_loss(metric, value, rows, expected) -> None:
    assert clear_difference(metric, value, rows) == pytest.approx(expected)


def curve(*values: float) -> list[CurvePoint]:
    return [CurvePoint(2 * step, {"eval_loss": value}) for step, value in enumerate(values)]


def stopper(**known: list[CurvePoint]) -> HalfwayStop:
    names = ("low", "middle", "high")
    return HalfwayStop("eval_loss", 4, dict.fromkeys(names, names), known, greater_is_better=False)


def test_the_worse_half_is_stopped_at_the_same_step() -> None:
    stop = stopper(low=curve(1.0, 0.9, 0.8, 0.1), middle=curve(1.0, 0.7, 0.6))
    high = Trial("high", "r.yaml")
    assert not stop.should_stop(high, curve(1.0, 2.0)), "not before halfway"
    assert stop.should_stop(high, curve(1.0, 2.0, 0.9))
    assert not stop.should_stop(high, curve(1.0, 2.0, 0.7)), "better than one of the two others"
    assert not stop.should_stop(high, curve(1.0, 2.0, 0.82)), "behind by less than such rows tell"
    assert not stop.should_stop(high, curve(1.0, 2.0, 0.9, 0.9)), "not after halfway"


def test_nobody_is_stopped_for_curves_that_are_not_there_yet() -> None:
    stop = stopper(middle=curve(1.0, 0.7, 0.6))
    assert not stop.should_stop(Trial("high", "r.yaml"), curve(1.0, 2.0, 0.9))
    assert not stop.should_stop(Trial("another", "r.yaml"), curve(1.0, 2.0, 0.9))
    assert stop.should_stop(Trial("low", "r.yaml"), curve(1.0, 2.0, 0.95)), "curves of this start count, too"
