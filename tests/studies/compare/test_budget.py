"""The budget: a length of time, plans that fit it, and what earlier starts of the command used of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.studies.compare.budget.length_plan import (
    CURVE_ROWS,
    FEWEST_STEPS,
    MARGIN,
    THRIFTY_ROWS,
    expected_seconds,
    make_plan,
    run_length,
)
from peftcli.studies.compare.budget.plan_file import kept_plan
from peftcli.studies.compare.budget.run_cost import RunCost, RunLength, held_out_rows, measured_cost
from peftcli.studies.compare.budget.time_budget import SpentTime, covered, parse_budget
from peftcli.studies.engine.trial import CurvePoint, TrialResult

ROWS = 100
FAST, SLOW = RunCost(2.0, 0.05, 0.005), RunCost(4.0, 0.2, 0.01)
COSTS = {"a": FAST, "b": SLOW}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("40m", 2400), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("5min", 300)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["40", "m", "-3m", "0s", "1h 5x", "40minutes", "nan", "1e3s"])
def test_what_is_no_length_of_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UserError, match="1h30m"):
        parse_budget(text)


def test_without_a_budget_runs_are_as_long_as_the_recipes_ask() -> None:
    plan = make_plan(COSTS, rows=ROWS, rates=3, seeds=3, full_steps=217, budget=None, jobs=1)
    assert (plan.score.steps, plan.search.steps, plan.trials) == (217, 109, 12)


@pytest.mark.parametrize("budget", [160, 200, 600, 1234])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_plan_fits_its_budget_and_uses_it(budget: float, jobs: int) -> None:
    plan = make_plan(COSTS, rows=ROWS, rates=3, seeds=3, full_steps=100_000, budget=budget, jobs=jobs)
    assert plan.seconds <= MARGIN * budget
    assert plan.seconds == expected_seconds(plan, COSTS, jobs)
    longer = make_plan(COSTS, rows=ROWS, rates=3, seeds=3, full_steps=plan.score.steps + 1, budget=None, jobs=jobs)
    assert longer.seconds > MARGIN * budget, "one step more would have fitted"


def test_a_budget_for_too_few_steps_is_refused_with_one_that_does() -> None:
    with pytest.raises(UserError, match=f"runs of {FEWEST_STEPS} steps") as refused:
        make_plan(COSTS, rows=ROWS, rates=3, seeds=3, full_steps=1000, budget=90, jobs=1, spent=40)
    minutes = int(refused.value.problems[0].suggestion.split()[1].removesuffix("m"))
    plan = make_plan(COSTS, rows=ROWS, rates=3, seeds=3, full_steps=1000, budget=60 * minutes, jobs=1, spent=40)
    assert plan.score.steps >= FEWEST_STEPS


def test_short_recipes_need_no_more_steps_than_they_have() -> None:
    assert make_plan(COSTS, rows=ROWS, rates=3, seeds=1, full_steps=6, budget=90, jobs=1).score.steps == 6


def test_dear_evaluations_are_fewer_but_never_below_two() -> None:
    cheap, dear = run_length(80, {"a": RunCost(1, 1.0, 0.001)}, ROWS), run_length(80, {"a": RunCost(1, 1.0, 0.5)}, ROWS)
    assert (cheap.every, dear.every) == (10, 40)
    assert run_length(80, {"a": RunCost(1, 1.0, 0.001), "b": RunCost(1, 1.0, 0.05)}, ROWS).every == 20


@pytest.mark.parametrize(
    ("steps", "every", "count", "halfway"), [(8, 4, 2, 4), (9, 3, 3, 3), (10, 3, 4, 3), (1, 1, 1, 1)]
)
def test_evaluations_are_at_each_interval_and_after_and_perhaps_before(
    steps: int, every: int, count: int, halfway: int
) -> None:
    length = RunLength(steps, every, ROWS)
    assert (length.evaluations, length.halfway) == (count, halfway)
    assert replace(length, first=True).evaluations == count + 1


def test_the_first_plan_counts_for_every_later_start(tmp_path) -> None:
    first = make_plan(COSTS, rows=ROWS, rates=3, seeds=3, full_steps=1000, budget=300, jobs=1)
    file = tmp_path / "plan.json"
    assert kept_plan(file, lambda: first) == first
    assert kept_plan(file, lambda: pytest.fail("planned again")) == first
    file.write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        kept_plan(file, lambda: first)


def test_time_is_counted_over_starts_and_once_where_they_overlap(tmp_path) -> None:
    assert covered([(0, 10), (5, 12), (20, 21)]) == 13
    spent = SpentTime(tmp_path)
    spent.seen()
    before = spent.seconds()
    (tmp_path / "sessions" / "other.json").write_text(json.dumps({"began": 1000.0, "seen": 1100.0}))
    (tmp_path / "sessions" / "damaged.json").write_text("{")
    assert 100 <= spent.seconds() - before < 101


def test_a_run_costs_its_steps_its_evaluations_and_the_scoring_of_its_rows() -> None:
    cost = RunCost(start=3.0, step=0.5, row=0.1)
    assert cost.seconds(RunLength(10, 5, 20)) == 3.0 + 10 * 0.5 + 2 * 20 * 0.1
    assert cost.seconds(RunLength(10, 5, 20, scored=20)) == 2 * 3.0 + 10 * 0.5 + 3 * 20 * 0.1
    plan = make_plan({"a": cost}, rows=1000, rates=3, seeds=3, full_steps=200, budget=None, jobs=1)
    assert (plan.search.rows, plan.search.scored) == (CURVE_ROWS, 0)
    assert (plan.score.rows, plan.score.scored, plan.score.first) == (CURVE_ROWS, 1000, True)


def test_a_budget_that_is_short_is_kept_by_smaller_evaluations_before_it_is_refused() -> None:
    costs = {"a": RunCost(start=3.0, step=0.5, row=0.1)}
    usual = make_plan(costs, rows=200, rates=3, seeds=3, full_steps=20, budget=None, jobs=1).seconds
    short = make_plan(costs, rows=200, rates=3, seeds=3, full_steps=20, budget=usual, jobs=1)
    assert short.seconds <= MARGIN * usual
    assert (short.score.rows, short.score.scored, short.score.first) == (THRIFTY_ROWS, 200, False)
    assert short.search.rows == THRIFTY_ROWS


def test_imports_are_no_cost_of_runs_that_are_forked() -> None:
    curve = tuple(CurvePoint(step, {"eval_loss": 1.0, "eval_rows": 50.0, "eval_runtime": 2.0}) for step in (0, 4))
    summary = {"steps": 4, "train_tokens": 400, "tokens_per_second": 100.0}
    result = TrialResult("a", "finished", summary=summary, curve=curve, seconds=20.0, seconds_of_imports=7.0)
    assert measured_cost(result, Path(), warm=False) == RunCost(12.0, 1.0, 0.04)
    assert measured_cost(result, Path(), warm=True) == RunCost(5.0, 1.0, 0.04)
    assert held_out_rows([result]) == 50
