"""How long the runs of a comparison are: as long as the recipe asks, or shortened, all equally, to fit a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from peftcli.errors import UserError
from peftcli.record.shown_numbers import duration
from peftcli.studies.compare.budget.run_cost import RunCost, RunLength

SEARCH_SHARE = 0.5
"""Steps of a run of the rate search, as a share of those of a scoring run."""

EVALUATIONS = 8
"""Evaluations of a scoring run after its first step, for its curve; fewer where they would take too long."""

EVALUATION_SHARE = 0.25
"""Evaluations take at most this share of a run's steps, as long as there are `FEWEST`."""

CURVE_ROWS = 128
"""Held-out rows on which a run is evaluated while it trains, at most: for the choice of a rate, and for curves. Scores
are of all rows, once at the end: evaluations on all of them would take most of a short study's time."""

THRIFTY_ROWS = 64
"""The same where a budget leaves no other way; scoring runs then go without the evaluation before their first step,
which is for their curves only."""

FEWEST = 2
"""Evaluations of any run: one halfway, at which a rate search stops the worse half, and one at the end."""

FEWEST_STEPS = 20
"""Steps below which a run shows little of its method: a budget that gives fewer is refused."""

MARGIN = 0.9
"""Share of what is left of a budget that is planned; the rest is for what takes longer than it did before."""

EXTRA_RATES = 0.5
"""Rates beyond the window that a method needs, on average, while a budget is planned."""


@dataclass(frozen=True)
class StudyPlan:
    """What will be run.

    Args:
        methods: labels, in order.
        rates: tried for each method; 0 without a search.
        seeds: of the scoring runs.
        full_steps: what the recipes ask for.
        search, score: lengths of a run of the search, and of a scoring run.
        seconds: expected for all of it.
    """

    methods: tuple[str, ...]
    rates: int
    seeds: int
    full_steps: int
    search: RunLength
    score: RunLength
    seconds: float

    @property
    def trials(self) -> int:
        """How many runs, those beyond the window of rates not counted."""
        return len(self.methods) * (self.rates + self.seeds)


def run_length(steps: int, costs: Mapping[str, RunCost], rows: int, *, most: int = EVALUATIONS) -> RunLength:
    """Return a length with evaluations at equal distances and one after the last step, the same for all methods.

    The method whose evaluations are dearest beside its steps decides how many there are.
    """
    share = max((rows * cost.row / cost.step for cost in costs.values() if cost.step > 0), default=0.0)
    affordable = int(EVALUATION_SHARE * steps / share) if share > 0 else most
    every = math.ceil(steps / max(1, min(steps, max(FEWEST, min(most, affordable)))))
    return RunLength(steps, every, rows)


def make_plan(
    costs: Mapping[str, RunCost],
    *,
    rows: int,
    rates: int,
    seeds: int,
    full_steps: int,
    budget: float | None,
    jobs: int,
    spent: float = 0.0,
    fewest: int = 1,
) -> StudyPlan:
    """Return the longest runs that fit.

    Args:
        costs: by label of the methods that could be timed.
        rows: that are held out.
        rates, seeds: runs of each method.
        full_steps: optimizer steps that the recipes ask for; runs are never longer.
        budget: seconds for the whole comparison; None does not shorten.
        jobs: runs at once.
        spent: seconds of the budget that are used already.
        fewest: steps that some method's settings need.

    Raises:
        UserError: the budget gives a run fewer than `FEWEST_STEPS`; says which would do.
    """
    fewest = min(full_steps, max(fewest, FEWEST_STEPS))

    def planned(steps: int, thrifty: bool = False) -> StudyPlan:
        some = min(rows, THRIFTY_ROWS if thrifty else CURVE_ROWS)
        score = replace(run_length(steps, costs, some), scored=rows, first=not thrifty, full=full_steps)
        halved = max(min(fewest, steps), math.ceil(SEARCH_SHARE * steps))
        search = replace(run_length(halved, costs, some, most=2 * FEWEST), full=full_steps)
        plan = StudyPlan(tuple(costs), rates, seeds, full_steps, search, score, 0.0)
        return replace(plan, seconds=expected_seconds(plan, costs, jobs))

    whole = planned(full_steps)
    if budget is None:
        return whole
    most = MARGIN * (budget - spent)
    if whole.seconds <= most:
        return whole
    low, high = fewest, full_steps  # `high` is too long; the time hardly ever falls where steps rise
    thrifty = planned(low).seconds > most
    if (least := planned(low, thrifty)).seconds > most:
        raise _too_small(least, budget, spent)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if planned(middle, thrifty).seconds <= most else (low, middle)
    return planned(low, thrifty)


def expected_seconds(plan: StudyPlan, costs: Mapping[str, RunCost], jobs: int) -> float:
    """Return the time of all runs, `jobs` at once, with some rates beyond the window."""
    rates = plan.rates + (EXTRA_RATES if plan.rates > 1 else 0)
    total = sum(rates * cost.seconds(plan.search) + plan.seeds * cost.seconds(plan.score) for cost in costs.values())
    return total / max(1, jobs)


def _too_small(least: StudyPlan, budget: float, spent: float) -> UserError:
    enough = math.ceil((spent + least.seconds / MARGIN) / 60 + 0.01)
    return UserError(
        f"a budget of {duration(budget)} is too short: {least.trials} runs of {least.score.steps} steps, the "
        f"fewest that say something about a method, take {duration(least.seconds)}, and "
        f"{duration(max(0.0, budget - spent))} are left",
        suggestion=f"--budget {enough}m is enough, and keeps what is done; or compare fewer methods, --rates or "
        "--seeds in another directory (-o)",
    )
