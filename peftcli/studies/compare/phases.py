"""The trials of a comparison in order: timing, the rate search, fresh seeds; each planned from what the last took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from peftcli.errors import UserError
from peftcli.record.shown_numbers import duration
from peftcli.studies.compare.asked import Asked
from peftcli.studies.compare.budget.length_plan import StudyPlan, expected_seconds, make_plan
from peftcli.studies.compare.budget.plan_file import kept_plan
from peftcli.studies.compare.budget.run_cost import TIMED_ROWS, RunCost, RunLength, held_out_rows, measured_cost
from peftcli.studies.compare.budget.time_budget import SpentTime
from peftcli.studies.compare.candidate import Candidate
from peftcli.studies.compare.rate_search import HalfwayStop, beyond, chosen_rate, clear_difference, rate_window
from peftcli.studies.compare.trial_recipes import rate_trial, score_trial, shortest_run, timing_trial, write_recipes
from peftcli.studies.compare.trial_results import final_score, method_rate, step_count
from peftcli.studies.engine.process.machine_share import machine_shares
from peftcli.studies.engine.study import Study
from peftcli.studies.engine.trial import Trial, TrialResult
from peftcli.studies.engine.watching import StopEarly, Watcher


class CompareWatcher(Watcher, Protocol):
    """Who shows a comparison at work."""

    def planned(self, plan: StudyPlan, left: float | None) -> None:
        """Show what will be run; `left` is what remains of the budget."""
        ...

    def phase(self, title: str, trials: int, seconds: float | None) -> None:
        """Show that so many trials begin; `seconds` until the last phase ends, None if that is not known yet."""
        ...


@dataclass
class Found:
    """What the trials showed, by the candidate's name.

    Args:
        timing: results of the timing runs.
        rates: results of the rate search, by rate.
        chosen: the rate of the scoring runs.
        scores: results of the scoring runs, in the order of `seeds`.
        seeds: for which every method that could be trained was.
        plan: lengths and counts.
        notes: sentences for the report.
    """

    timing: dict[str, TrialResult] = field(default_factory=dict)
    rates: dict[str, dict[float, TrialResult]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    scores: dict[str, list[TrialResult]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    plan: StudyPlan | None = None
    notes: list[str] = field(default_factory=list)


class Phases:
    """Runs the trials of one comparison.

    Args:
        asked: what to compare.
        study: where trials run.
        watch: is told of plans, phases and trials.
    """

    def __init__(self, asked: Asked, study: Study, watch: CompareWatcher) -> None:
        self._asked, self._study, self._watch = asked, study, watch
        self._spent = SpentTime(asked.directory)
        self._found = Found()
        self._costs: dict[str, RunCost] = {}

    def run(self) -> Found:
        """Train everything that is not trained yet, and return what it showed.

        Raises:
            UserError: the budget is too short.
            Stopped: the user stopped it; the same command goes on.
        """
        write_recipes(self._asked.candidates, self._asked.directory)
        self._time()
        alive = [each for each in self._asked.candidates if each.name in self._costs]
        if not alive:
            return self._found
        self._plan(alive)
        if self._asked.rates:
            self._search(alive)
        else:
            self._found.chosen = {each.name: self._middle(each) for each in alive}
        self._score([each for each in alive if each.name in self._found.chosen])
        return self._found

    def _time(self) -> None:
        """Train a few steps of each method, in a fresh process each."""
        candidates = self._asked.candidates
        self._watch.phase("timing a few steps of each method", len(candidates), None)
        missing = {each.name for each in candidates if self._study.result(timing_trial(each).name) is None}
        before = self._spent.seconds()
        for first in range(0, len(candidates), self._asked.jobs):
            some = candidates[first : first + self._asked.jobs]
            # one method is evaluated on all held-out rows, which also tells how many there are
            results = self._run([timing_trial(each, 0 if each is candidates[0] else TIMED_ROWS) for each in some])
            self._found.timing.update({each.name: result for each, result in zip(some, results, strict=True)})
            done = sum(each.name in missing for each in candidates[: first + len(some)])
            self._check_timing(done, len(missing), self._spent.seconds() - before)
        warm = all(share.warm for share in machine_shares(self._asked.jobs))
        for each in candidates:
            result = self._found.timing[each.name]
            if result.state == "finished":
                self._costs[each.name] = measured_cost(result, self._asked.directory, warm=warm)
        for each in candidates:  # diverged within a few steps: its time is that of the slowest
            if self._found.timing[each.name].state == "diverged" and self._costs:
                self._costs[each.name] = max(self._costs.values(), key=lambda cost: cost.step)

    def _check_timing(self, done: int, every: int, seconds: float) -> None:
        """Refuse a budget that the timing runs alone would use up by half.

        Args:
            done, every: of the timing runs that this start of the command makes.
            seconds: that the done ones took.
        """
        budget = self._asked.budget
        expected = seconds / max(1, done) * every
        if budget is not None and 0 < done < every and expected > budget / 2:
            enough = 60 * math.ceil(4 * expected / 60)
            raise UserError(
                f"a budget of {duration(budget)} is too short: timing a few steps of {every} methods takes "
                f"{duration(expected)} of it",
                suggestion=f"--budget {enough // 60}m would leave something for the runs; or compare fewer methods",
            )

    def _plan(self, alive: Sequence[Candidate]) -> None:
        """Fix the lengths of all runs: this start does, or an earlier one or another machine did."""
        full = next(steps for each in alive if (steps := step_count(self._asked.recipe, self._found.timing[each.name])))
        costs = {each.name: self._costs[each.name] for each in alive if each.name in self._costs}
        fewest = max(shortest_run(each, 1) for each in alive)

        def made() -> StudyPlan:
            return make_plan(
                costs, rows=self._rows(), rates=self._asked.rates, seeds=self._asked.seeds, full_steps=full,
                budget=self._asked.budget, jobs=self._asked.jobs, spent=self._spent.seconds(), fewest=fewest,
            )  # fmt: skip

        plan = kept_plan(self._asked.directory / "plan.json", made)
        plan = replace(plan, rates=self._asked.rates, seeds=self._asked.seeds)
        self._found.plan = replace(plan, seconds=expected_seconds(plan, costs, self._asked.jobs))
        self._watch.planned(self._found.plan, self._left())

    def _search(self, alive: Sequence[Candidate]) -> None:
        """Try the rates of every method; widen the window where the best one lies at its edge."""
        assert self._found.plan is not None
        length = self._found.plan.search
        windows = {each.name: rate_window(self._middle(each), self._asked.rates) for each in alive}
        wanted = [(each, rate) for turn in range(self._asked.rates) for each in alive
                  for rate in windows[each.name][turn : turn + 1]]  # fmt: skip
        while wanted:
            self._watch.phase("searching learning rates", len(wanted), self._expected(len(wanted), length))
            self._try(wanted, length)
            wanted = [(each, rate) for each in alive if (rate := self._beyond(each)) is not None]
            cost = sum(self._costs[each.name].seconds(length) for each, _ in wanted) / self._asked.jobs
            left = self._left()
            if left is not None and wanted and cost > left - self._shortest_scores(alive):
                names = ", ".join(each.label for each, _ in wanted)
                self._found.notes.append(f"the budget left no time for a rate beyond the window of {names}")
                break
        self._learn_costs(alive, length, {each.name: [*self._found.rates[each.name].values()] for each in alive})
        for each in alive:
            chosen = chosen_rate(
                self.rate_scores(each), self._middle(each), self._asked.metric, length.rows,
                greater_is_better=self._asked.greater_is_better,
            )  # fmt: skip
            if chosen is not None:
                self._found.chosen[each.name] = chosen

    def _try(self, wanted: Sequence[tuple[Candidate, float]], length: RunLength) -> None:
        trials = [rate_trial(each, rate, length) for each, rate in wanted]
        rivals: dict[str, list[str]] = {}
        for each in {each.name: each for each, _ in wanted}.values():
            rates = [*self._found.rates.get(each.name, {}), *(rate for other, rate in wanted if other is each)]
            names = [rate_trial(each, rate, length).name for rate in dict.fromkeys(rates)]
            rivals |= dict.fromkeys(names, names)
        known = {name: result.curve for name in rivals if (result := self._study.result(name)) is not None}
        stop = HalfwayStop(
            self._asked.metric, length.halfway, rivals, known, greater_is_better=self._asked.greater_is_better
        )
        for (each, rate), result in zip(wanted, self._run(trials, stop), strict=True):
            self._found.rates.setdefault(each.name, {})[rate] = result

    def rate_scores(self, candidate: Candidate) -> dict[float, float | None]:
        """Return the final scores of a method's rates; None of one that was stopped, diverged or failed."""
        tried = self._found.rates.get(candidate.name, {})
        return {
            rate: final_score(result, self._asked.metric) if result.state == "finished" else None
            for rate, result in tried.items()
        }

    def _beyond(self, candidate: Candidate) -> float | None:
        results = self._found.rates[candidate.name].values()
        if all(result.state in ("refused", "failed") for result in results):
            return None
        scores = self.rate_scores(candidate)
        rate = beyond(scores, self._asked.rates, greater_is_better=self._asked.greater_is_better)
        return None if rate in scores else rate

    def _learn_costs(
        self, alive: Sequence[Candidate], length: RunLength, ran: Mapping[str, Sequence[TrialResult]]
    ) -> None:
        """Correct what a run costs by what runs of this length took.

        Args:
            ran: by the candidate's name.
        """
        for each in alive:
            took = [one.seconds for one in ran[each.name] if one.state == "finished"]
            expected = self._costs[each.name].seconds(length)
            if took and expected > 0:
                self._costs[each.name] = self._costs[each.name].scaled(sum(took) / len(took) / expected)

    def _score(self, alive: Sequence[Candidate]) -> None:
        """Train fresh seeds at the chosen rates, a seed of every method after the other."""
        assert self._found.plan is not None
        if not alive:
            return
        length = self._score_length(alive)
        self._found.plan = replace(self._found.plan, score=length)
        seeds = self._asked.score_seeds
        for number, seed in enumerate(seeds):
            trials = [score_trial(each, self._found.chosen[each.name], seed, length) for each in alive]
            missing = [trial for trial in trials if self._study.result(trial.name) is None]
            seconds = self._seconds(alive, length) * len(missing) / len(trials)
            left = self._left()
            if left is not None and missing and number and seconds > left:
                self._found.notes.append(
                    f"{number} of {len(seeds)} seeds: the budget left no time for another one of every method"
                )
                break
            self._watch.phase(f"seed {number + 1} of {len(seeds)}", len(trials), seconds * (len(seeds) - number))
            for each, result in zip(alive, self._run(trials), strict=True):
                self._found.scores.setdefault(each.name, []).append(result)
            if not number and self._asked.rates:
                self._lower_what_does_not_hold(alive, seed, length)
            self._found.seeds.append(seed)
            self._learn_costs(alive, length, {each.name: self._found.scores[each.name][-1:] for each in alive})

    def _lower_what_does_not_hold(self, alive: Sequence[Candidate], seed: int, length: RunLength) -> None:
        """Take a lower rate for methods whose first scoring run is clearly worse than the search was at the same rate.

        A scoring run is no shorter than those of the search. One that comes out worse on another seed says that the
        search was lucky: the rate is too high to be steady.
        """
        fallen = [each for each in alive if not self._holds(each, length.rows)]
        while fallen := [each for each in fallen if self._next_lower(each) is not None]:
            for each in fallen:
                before, lower = self._found.chosen[each.name], self._next_lower(each)
                assert lower is not None
                self._found.notes.append(
                    f"{each.label}: at the rate {before:g} a fresh seed scored clearly worse than the search did; "
                    f"{lower:g} was taken for all seeds"
                )
                self._found.chosen[each.name] = lower
            trials = [score_trial(each, self._found.chosen[each.name], seed, length) for each in fallen]
            self._watch.phase("lower rates where the best did not hold", len(trials), None)
            for each, result in zip(fallen, self._run(trials), strict=True):
                self._found.scores[each.name] = [result]
            fallen = [each for each in fallen if not self._holds(each, length.rows)]

    def _holds(self, candidate: Candidate, rows: int) -> bool:
        """Return whether the first scoring run is not clearly worse than the search's run at the same rate."""
        result = self._found.scores[candidate.name][0]
        found = self.rate_scores(candidate).get(self._found.chosen[candidate.name])
        if found is None or result.state not in ("finished", "diverged"):
            return True
        score = final_score(result, self._asked.metric) if result.state == "finished" else None
        worse = math.inf if score is None else (found - score if self._asked.greater_is_better else score - found)
        return worse <= clear_difference(self._asked.metric, found, rows)

    def _next_lower(self, candidate: Candidate) -> float | None:
        """Return the next lower rate that has a score in the search."""
        scores, now = self.rate_scores(candidate), self._found.chosen[candidate.name]
        return max((rate for rate, score in scores.items() if score is not None and rate < now), default=None)

    def _score_length(self, alive: Sequence[Candidate]) -> RunLength:
        """Return the length of the scoring runs, planned again with what is left of the budget."""
        assert self._found.plan is not None
        costs = {each.name: self._costs[each.name] for each in alive}
        fewest = max(shortest_run(each, 1) for each in alive)
        full, searched = self._found.plan.full_steps, self._found.plan.search.steps if self._asked.rates else 1

        def made() -> StudyPlan:
            for seeds in range(self._asked.seeds, 0, -1):
                try:
                    return make_plan(
                        costs, rows=self._rows(), rates=0, seeds=seeds, full_steps=full, budget=self._asked.budget,
                        jobs=self._asked.jobs, spent=self._spent.seconds(), fewest=max(fewest, searched),
                    )  # fmt: skip
                except UserError:
                    if seeds == 1:
                        raise
            raise AssertionError("a comparison has a seed")

        return kept_plan(self._asked.directory / "plan-scores.json", made).score

    def _seconds(self, alive: Iterable[Candidate], length: RunLength) -> float:
        """Return how long one run of each method takes."""
        return sum(self._costs[each.name].seconds(length) for each in alive) / self._asked.jobs

    def _shortest_scores(self, alive: Sequence[Candidate]) -> float:
        """Return the time of the scoring runs that must follow."""
        assert self._found.plan is not None
        return self._asked.seeds * self._seconds(alive, self._found.plan.search)

    def _expected(self, trials: int, length: RunLength) -> float | None:
        """Return the time until the last phase ends."""
        assert self._found.plan is not None
        costs = list(self._costs.values())
        if not costs:
            return None
        mean = sum(cost.seconds(length) for cost in costs) / len(costs)
        scores = self._asked.seeds * sum(cost.seconds(self._found.plan.score) for cost in costs)
        return (trials * mean + scores) / self._asked.jobs

    def _middle(self, candidate: Candidate) -> float:
        """Return the rate in the middle of a method's window: the recipe's, or the default that the timing run used."""
        return candidate.own_rate or method_rate(self._found.timing[candidate.name], self._asked.directory)

    def _rows(self) -> int:
        """Return how many rows are held out."""
        return held_out_rows(self._found.timing.values())

    def _left(self) -> float | None:
        """Return what is left of the budget."""
        return None if self._asked.budget is None else max(0.0, self._asked.budget - self._spent.seconds())

    def _run(self, trials: Sequence[Trial], stop: StopEarly | None = None) -> list[TrialResult]:
        """Run trials, and write down that time was spent, however this ends."""
        self._spent.seen()
        try:
            return self._study.run(trials, jobs=self._asked.jobs, watch=self._watch, stop_early=stop)
        finally:
            self._spent.seen()
