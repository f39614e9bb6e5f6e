"""`peft compare RECIPE...`: trains what is compared, and returns the record of what it showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peftcli.inference.row_scores import RowScores, score_base
from peftcli.recipe.schema import Recipe
from peftcli.record.shown_numbers import duration
from peftcli.studies.compare.asked import BASE, Asked, check_comparable
from peftcli.studies.compare.compared_rows import compared_method
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.compare.kept_scores import kept_scores, trial_scores
from peftcli.studies.compare.phases import CompareWatcher, Found, Phases
from peftcli.studies.compare.rate_search import at_edge
from peftcli.studies.compare.trial_recipes import score_trial
from peftcli.studies.compare.verdicts import with_verdicts
from peftcli.studies.engine.study import Study


def compare_recipes(asked: Asked, watch: CompareWatcher) -> Comparison:
    """Train everything that is not trained yet, and return the comparison.

    Raises:
        UserError: nothing comparable was asked, the directory holds another study, or the budget is too short.
        Stopped: the user stopped it; the same command goes on.
    """
    check_comparable(asked)
    study = Study.open(
        asked.directory,
        asked.question(),
        storage=asked.storage,
        metric=asked.metric,
        greater_is_better=asked.greater_is_better,
    )
    found = Phases(asked, study, watch).run()
    rows = [compared_method(each, found, asked.metric, asked.directory) for each in asked.candidates]
    comparison = _comparison(asked, found, rows)
    scored, before = _scores(asked, found, rows)
    return with_verdicts(comparison, scored, before)


def _scores(
    asked: Asked, found: Found, rows: Sequence[ComparedMethod]
) -> tuple[dict[str, list[RowScores]], list[RowScores]]:
    """Return the scores of held-out rows after training, by label, and before it."""
    scored: dict[str, list[RowScores]] = {}
    assert found.plan is not None or not found.scores
    for each, row in zip(asked.candidates, rows, strict=True):
        if row.status != "finished" or found.plan is None:
            continue
        results = zip(found.seeds, found.scores[each.name], strict=True)
        names = [
            score_trial(each, found.chosen[each.name], seed, found.plan.score).name
            for seed, result in results
            if result.state == "finished"
        ]
        scored[each.label] = [trial_scores(asked.directory, name) for name in names]
    loaded = asked.candidates[0].loaded
    file = asked.directory / "scores" / "before-training.json"
    before = [kept_scores(file, lambda: score_base(loaded))] if scored else []
    return scored, before


def _comparison(asked: Asked, found: Found, rows: list[ComparedMethod]) -> Comparison:
    recipe, plan = asked.recipe, found.plan
    return Comparison(
        task=recipe.task,
        model=recipe.model.name_or_path,
        data=data_name(recipe),
        metric=asked.metric,
        greater_is_better=asked.greater_is_better,
        rows=_held_out(found),
        seeds=found.seeds,
        methods=rows,
        reference=asked.reference,
        searched=asked.rates > 0,
        steps=plan.score.steps if plan else None,
        full_steps=plan.full_steps if plan else None,
        search_steps=plan.search.steps if plan and asked.rates else None,
        budget_seconds=asked.budget,
        seconds=_seconds(found),
        notes=[*_notes(asked, found, rows), *found.notes],
        command=asked.command,
    )


def data_name(recipe: Recipe) -> str:
    """Return where the rows are from."""
    return "" if recipe.data is None else recipe.data.named_sources


def _held_out(found: Found) -> int:
    """Return how many rows were held out, by any run that counted them."""
    for result in found.timing.values():
        counts: Mapping[str, int] = (result.summary.get("data") or {}).get("validation_rows") or {}
        if counts:
            return sum(counts.values())
    return 0


def _seconds(found: Found) -> float:
    every = [*found.timing.values()]
    every += [one for results in found.rates.values() for one in results.values()]
    every += [one for results in found.scores.values() for one in results]
    return sum(one.seconds for one in every)


def _notes(asked: Asked, found: Found, rows: Sequence[ComparedMethod]) -> list[str]:
    """Return what a reader must know of how this was measured."""
    notes, plan = [], found.plan
    if plan is not None and plan.score.steps < plan.full_steps:
        share = f"{plan.score.steps} of the {plan.full_steps} steps that the recipes ask for"
        notes.append(
            f"to fit the budget of {duration(asked.budget or 0)}, every run was shortened to {share} "
            f"({plan.score.steps / plan.full_steps:.0%}): methods that learn slowly may catch up in longer runs"
        )
    if not asked.rates:
        notes.append("no learning rate was searched (--no-search): each method ran at its recipe's rate or its default")
    elif plan is not None:
        notes.append(
            "learning rates were chosen in the same way for every method, by runs of "
            f"{plan.search.steps} steps with seed {asked.recipe.seed}, on the held-out rows that give the scores; the "
            "scores are of fresh seeds"
        )
    notes.append(
        "a run's score is that of its best evaluation, as in `peft train`; every method has as many evaluations"
    )
    if plan is not None and plan.score.rows < plan.score.scored:
        notes.append(
            f"curves, the choice of rates and of the adapter that a run keeps use {plan.score.rows} held-out rows; "
            f"scores use all {plan.score.scored}"
        )
    notes += [_at_edge(row) for row in rows if _lies_at_edge(row)]
    if asked.jobs > 1:
        notes.append(f"{asked.jobs} runs at a time shared this machine: times and tokens/s are those of that load")
    if asked.reference is not None and asked.reference != BASE:
        reference = next(row for row in rows if row.label == asked.reference)
        if reference.status != "finished":
            notes.append(f"the reference {reference.label} has no score: {reference.reason}")
    return notes


def _lies_at_edge(row: ComparedMethod) -> bool:
    scores = {point.rate: point.score for point in row.rates}
    return row.rate is not None and at_edge(scores, row.rate)


def _at_edge(row: ComparedMethod) -> str:
    rates = [point.rate for point in row.rates]
    side = "lowest" if row.rate == min(rates) else "highest"
    return f"{row.label}: its best learning rate, {row.rate:g}, is the {side} tried; a better one may lie beyond"
