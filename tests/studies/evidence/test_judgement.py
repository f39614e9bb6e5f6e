"""Verdicts and intervals: by hand where the answer is known, and by simulation where a rate is promised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from peftcli.inference.row_scores import GeneralScores, RowScores
from peftcli.studies.evidence.estimates import Estimates, Runs
from peftcli.studies.evidence.holm import holm
from peftcli.studies.evidence.judgement import Judgement, judge
from peftcli.studies.evidence.metric_sums import scored_rows
from peftcli.studies.evidence.seed_variance import seed_variances
from tests.studies.evidence.scores import with_losses, with_right


def of_losses(scored: dict[str, Sequence[RowScores]], reference: str | None = None, **more) -> dict[str, Judgement]:
    return judge(scored, metric="eval_loss", greater_is_better=False, reference=reference, **more)


def noisy(mean: float, seeds: int = 3, rows: int = 200, noise: float = 0.1, start: int = 0) -> list[RowScores]:
    """Return runs whose rows have losses about a common hard or easy row's."""
    hard = np.random.default_rng(99).random(rows)
    draw = np.random.default_rng([int(1000 * mean), start])
    return [with_losses((mean + hard + draw.normal(0, noise, rows)).tolist(), seed) for seed in range(seeds)]


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_one_seed_and_the_error_of_a_mean_by_hand() -> None:
    """The bootstrap's error of a mean is its standard error; one seed says nothing about seeds."""
    rows = np.random.default_rng(0).normal(5, 2, 400)
    found = of_losses({"lora": [with_losses(rows.tolist())]})["lora"]
    assert found.score == pytest.approx(rows.mean()) and found.interval is not None
    half = (found.interval[1] - found.interval[0]) / 2
    assert half == pytest.approx(1.966 * rows.std(ddof=1) / 20, rel=0.05)
    assert not found.seeds_covered and found.verdict == "best"


def test_rows_and_seeds_add_up_and_noise_counts_once() -> None:
    draw = np.random.default_rng(1)
    row, seed, each = draw.normal(0, 1, 500), draw.normal(0, 0.2, 100), draw.normal(0, 1, (100, 500))
    runs = [
        with_losses((10 + row + s + noise).tolist(), number)
        for number, (s, noise) in enumerate(zip(seed, each, strict=True))
    ]
    estimate = Estimates({"m": Runs([scored_rows(run, "loss") for run in runs])}).score("m")
    assert estimate.error**2 == pytest.approx(1 / 500 + 0.04 / 100, rel=0.3)
    two = Estimates({"m": Runs([scored_rows(run, "loss") for run in runs[:2]])}).score("m")
    assert two.freedom < 6 and two.interval is not None  # two seeds: a wide t interval


def test_seeds_of_all_methods_speak_together_but_an_unstable_one_speaks_for_itself() -> None:
    steady = [[0.0, 1.0, 2.0], [0.0, 1.1, 2.0], [0.0, 0.9, 2.0], [5.0, 6.0, 7.1]]
    found = seed_variances([*steady, [0.0, 40.0, 80.0]])
    assert found[-1] is not None and found[-1].variance == pytest.approx(1600) and found[-1].freedom < 4
    agreed = seed_variances(steady)
    assert all(each is not None and each.freedom > 4 for each in agreed)
    assert seed_variances([[1.0], [2.0]]) == [None, None]
    borrowed = seed_variances([*steady, [3.0]])[-1]  # two of its seeds diverged
    assert borrowed is not None and borrowed.variance == pytest.approx(1.0, rel=0.2)


def test_the_words_and_their_order() -> None:
    scored = {"best": noisy(1.0), "twin": noisy(1.001, start=1), "worse": noisy(1.2), "frozen": noisy(1.5),
              "useless": noisy(1.501, start=2)}  # fmt: skip
    found = of_losses(scored, reference="frozen")
    words = {label: each.verdict for label, each in found.items()}
    best, twin = ("best", "twin") if words["best"] == "best" else ("twin", "best")
    assert words == {best: "best", twin: "tied with the best", "worse": "behind", "frozen": "behind",
                     "useless": "not better than the reference"}  # fmt: skip
    worse = found["worse"]
    assert worse.difference == pytest.approx(0.2, abs=0.03) and worse.difference_interval is not None
    assert 0 < worse.difference_interval[0] < worse.difference < worse.difference_interval[1]
    assert worse.difference_to_reference == pytest.approx(-0.3, abs=0.03) and worse.p_reference < 0.001
    assert found["frozen"].p_reference is None and found[best].difference == 0

    of_the_best = of_losses(scored, reference=best)
    assert {of_the_best[label].verdict for label in ("worse", "frozen", "useless")} == {"behind"}
    assert of_losses(scored, reference="absent")["useless"].verdict == "behind"


def test_rows_that_are_hard_for_all_cancel_and_other_rows_do_not() -> None:
    """Paired, a small difference shows; on other rows, the same scores tell nothing."""
    rows = 10 * np.random.default_rng(3).random(200)
    scored = {"a": [with_losses(rows.tolist())], "b": [with_losses((rows + 0.1).tolist())]}
    assert of_losses(scored)["b"].verdict == "behind"
    unpaired = {**scored, "b": [with_losses((rows + 0.1).tolist(), identity="other rows")]}
    assert of_losses(unpaired)["b"].verdict == "tied with the best"


def test_direction_bounds_and_few_rows() -> None:
    right = {"all": [with_right([1] * 20)], "most": [with_right([1] * 19 + [0])]}
    found = judge(right, metric="accuracy", greater_is_better=True, reference=None)
    assert found["all"].verdict == "best" and found["most"].verdict == "tied with the best"
    assert found["most"].difference == pytest.approx(0.05)
    low, high = found["all"].interval
    assert high == 1.0 and low < 0.95  # all of 20 rows right is not certainty
    alone = of_losses({"a": [with_losses([1.0])], "b": [with_losses([2.0])]})
    assert alone["b"].verdict == "tied with the best" and alone["b"].interval is None


def test_before_forgotten_and_what_has_no_score() -> None:
    text = [GeneralScores("text", "general", [2.0 + rise + i % 3 for i in range(90)], [1.0] * 90) for rise in (0, 0.25)]
    before, after = (with_losses([3.0 - rise] * 50, None if rise == 0 else 0, general=text[int(rise > 0)])
                     for rise in (0, 1.5))  # fmt: skip
    found = of_losses({"lora": [after], "none": [], "broken": [with_losses([float("inf")] * 50)]}, "none",
                      before={"lora": [before]})  # fmt: skip
    assert set(found) == {"lora"}
    lora = found["lora"]
    assert lora.score_before == pytest.approx(3.0) and lora.forgotten == pytest.approx(0.25)
    assert lora.forgotten_interval == pytest.approx((0.25, 0.25), abs=1e-6)
    assert found == of_losses({"lora": [after]}, before={"lora": [before]})  # the same data, the same report


def test_methods_that_share_the_scores_before_training_say_no_more_about_the_seed_than_one_does() -> None:
    first = [with_losses((np.linspace(3, 4, 60) + seed / 4).tolist(), seed) for seed in range(3)]
    scored = {label: noisy(1.0, start=number) for number, label in enumerate("abcdef")}
    alone = of_losses({"a": scored["a"]}, before={"a": first})["a"]
    together = of_losses(scored, before=dict.fromkeys(scored, first))
    assert alone.interval_before == pytest.approx(together["f"].interval_before)
    assert alone.score_before == together["f"].score_before


@pytest.mark.parametrize(("seeds", "unstable"), [(3, 1.0), (3, 4.0), (1, 0.0)])
def test_by_simulation_intervals_cover_and_equal_methods_are_not_called_behind(seeds: int, unstable: float) -> None:
    """120 comparisons of four equal methods; bounds are those of the promise, with the simulation's own error."""
    draw = np.random.default_rng([seeds, int(unstable)])
    false, covered, scores = 0, [], []
    for _ in range(120):
        hard, scored = draw.gamma(2, 0.5, 60), {}
        for method in range(4):
            own = hard + draw.normal(0, 0.2, 60)  # rows that this method finds hard
            spread = 0.0 if seeds == 1 else 0.06 * (unstable if method == 0 else 1.0)
            runs = own + draw.normal(0, 0.2, (seeds, 60)) + draw.normal(0, spread, (seeds, 1))
            scored[f"m{method}"] = [with_losses((9 + run).tolist(), seed) for seed, run in enumerate(runs)]
        found = of_losses(scored, reference="m1")
        false += any(each.verdict in ("behind", "not better than the reference") for each in found.values())
        covered.append(_holds(found["m0"].reference_interval, 0.0))
        scores += [_holds(each.interval, 10.0) for each in found.values()]
    assert false / 120 <= 0.09 and np.mean(covered) >= 0.87 and 0.89 <= np.mean(scores) <= 0.995


def _holds(interval: tuple[float, float] | None, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def test_a_difference_of_accuracies_is_at_most_all_of_them() -> None:
    """Two seeds far apart tell little of other seeds, and yet no accuracy is behind by more than 100 points."""
    steady = [with_right([True] * 30 + [False] * 10, seed) for seed in range(2)]
    wild = [with_right([right] * 40, seed) for seed, right in enumerate((True, False))]
    found = judge({"steady": steady, "wild": wild}, metric="accuracy", greater_is_better=True, reference="steady")
    for interval in (found["wild"].difference_interval, found["wild"].reference_interval):
        assert interval == (-1.0, 1.0)


@pytest.mark.parametrize(("metric", "side"), [("rewards_margins", "predictions"), ("logps_chosen", "references")])
def test_an_interval_of_rewards_or_log_probabilities_is_not_cut_as_a_share_would_be(metric: str, side: str) -> None:
    draw = np.random.default_rng(3)

    def pairs(seed: int, shift: float) -> RowScores:
        sides = {name: [[shift + more, 0.0] for more in draw.normal(size=60)] for name in ("predictions", "references")}
        return with_losses([1.0] * 60, seed, kind="preferences", **sides)

    sign = 1 if side == "predictions" else -1
    scored = {"low": [pairs(seed, sign * 40.0) for seed in range(2)], "high": [pairs(seed, 50.0) for seed in range(2)]}
    found = judge(scored, metric=f"eval_{metric}", greater_is_better=True, reference=None)
    for one in found.values():
        assert one.interval[0] < one.score < one.interval[1]
    low, high = found["low"].difference_interval
    assert low < found["low"].difference < high and found["low"].difference > 9


def test_a_loss_that_is_below_0_lies_in_its_interval() -> None:
    found = of_losses({"a": [with_losses([-2.0, -1.0, -1.5] * 10)]})["a"]
    assert found.interval is not None and found.interval[0] < found.score < found.interval[1] < 0
