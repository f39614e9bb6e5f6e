"""Run a sweep: the search, its winners on fresh seeds, and the record of what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftcli.atomic import write_text
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.yaml.dump_recipe import with_references
from peftcli.recipe.yaml.recipe_text import read_recipe_text
from peftcli.record.step_lines import finite
from peftcli.studies.compare.trial_results import final_score
from peftcli.studies.engine.measured_where import measured_here
from peftcli.studies.engine.study import Study
from peftcli.studies.report.shell.report_numbers import ScoreScale
from peftcli.studies.report.written_report import REPORT, write_report
from peftcli.studies.sweep.best_recipe import best_recipe_text
from peftcli.studies.sweep.fresh_seeds import judge_winners, run_winners, winners_of
from peftcli.studies.sweep.key_importance import importance
from peftcli.studies.sweep.optuna_points import STARTUP, RepeatableSampler
from peftcli.studies.sweep.run_settings import RunSettings, SweepWatcher
from peftcli.studies.sweep.search_trials import SearchTrials, Tried
from peftcli.studies.sweep.space.point_overrides import overrides_of
from peftcli.studies.sweep.sweep_answer import alpha_note, best_answer, edges, ordered_answer
from peftcli.studies.sweep.sweep_record import Sweep, SweepBest, SweepTrial, SweepWinner
from peftcli.studies.sweep.sweep_request import SweepRequest

BEST = "best.yaml"
RECORD = "sweep.json"
INSTEAD = "choose another --output"


def run_sweep(request: SweepRequest, settings: RunSettings, watch: SweepWatcher) -> Sweep:
    """Train everything that is not trained yet; write the record, the reports and `best.yaml`; return the record.

    Raises:
        UserError: the directory holds another study, or its storage cannot be reached.
        Stopped: the user stopped it; the same call goes on.
    """
    study = _open(request, settings)
    trials = SearchTrials(study, request, _written_recipe(request, settings.directory), settings, watch)
    early = trials.run()
    tried = trials.tried()
    winners = winners_of(tried, request)
    results = run_winners(winners, request, trials, watch)
    judged, rows = judge_winners(winners, results, request, settings.directory)
    key = request.number_key
    best = next((one for one in judged if one.verdict == "best"), None)
    at_edge = [] if best is None else edges(request.checked.space, best.values)
    table = [_row(number, one, request.metric) for number, one in enumerate(tried)]
    shares, why = importance(table, request.checked.space, greater_is_better=request.greater_is_better)
    happened = _what_happened(request, tried, trials.repeated(), early=early)
    scale = ScoreScale(request.metric, request.greater_is_better)
    every = [one.result for one in tried if one.result is not None] + [one for some in results.values() for one in some]
    sweep = Sweep(
        metric=request.metric,
        greater_is_better=request.greater_is_better,
        keys=request.checked.space.keys(),
        trials=table,
        winners=judged,
        best=None if best is None else _best(best),
        importance=shares,
        answer=best_answer(judged, scale) if key is None else ordered_answer(key, judged, scale),
        sampler=request.sampler,
        pruner=request.pruner,
        notes=[*happened, *at_edge, *_about_keys(request), *([why] if why else [])],
        seed=request.loaded.recipe.seed,
        seeds=list(request.seeds),
        rows=rows,
        recipe=str(request.recipe),
        seconds=sum(result.seconds for result in every),
        command=settings.command,
        **measured_here(),
    )
    _write(sweep, request, settings.directory, at_edge)
    return sweep


def _open(request: SweepRequest, settings: RunSettings) -> Study:
    """Open the study; what may change from one start to the next (trials, seeds, jobs, budget) is no part of it."""
    loaded = request.loaded
    recipe = {key: value for key, value in with_references(loaded.recipe, loaded.tree).items() if key != "output_dir"}
    asked: dict[str, Any] = {
        "command": "sweep",
        "recipe": recipe,
        "search": request.checked.space.keys(),
        "sampler": request.sampler,
        "pruner": request.pruner,
    }
    sampler = None
    if request.sampler != "grid":
        sampler = RepeatableSampler(request.sampler, loaded.recipe.seed, min(STARTUP, max(1, request.trials // 3)))
    return Study.open(
        settings.directory,
        asked,
        storage=settings.storage,
        metric=request.metric,
        greater_is_better=request.greater_is_better,
        sampler=sampler,
    )


def _written_recipe(request: SweepRequest, directory: Path) -> str:
    """Write the recipe into the study as its author wrote it, once; return its path there."""
    path = f"recipes/{request.recipe.stem}.yaml"
    file = directory / path
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, read_recipe_text(request.recipe))
    return path


def _row(number: int, one: Tried, metric: str) -> SweepTrial:
    result = one.result
    if result is None:
        return SweepTrial(number, one.point, None, "not run", reason="the budget was used")
    curve = [(at.step, at.metrics[metric]) for at in result.curve if at.step > 0 and metric in at.metrics]
    score = final_score(result, metric)
    return SweepTrial(number, one.point, score, result.state, result.run, result.reason, curve)


def _best(winner: SweepWinner) -> SweepBest:
    assert winner.score is not None  # the best one has a score
    return SweepBest(winner.values, winner.score, winner.interval, BEST, winner.scores, winner.seeds)


def _what_happened(request: SweepRequest, tried: Sequence[Tried], repeated: int, *, early: bool) -> list[str]:
    """Return notes on trials that were not made, or that have no score."""
    notes = []
    missing = request.trials - repeated - sum(one.result is not None for one in tried)
    if early:
        notes.append(f"the budget was used before {missing} of {request.trials} trials were made")
    if repeated:
        notes.append(f"{repeated} trials drew values that had been tried, and were not trained again")
    states = [one.result.state for one in tried if one.result is not None]
    for state in ("stopped", "diverged", "failed", "refused"):
        if number := states.count(state):
            notes.append(f"{number} of {len(states)} trials {'were' if number > 1 else 'was'} {state}")
    if len(request.seeds) < 2:
        notes.append("one fresh seed shows nothing of how much scores vary between seeds")
    return notes


def _about_keys(request: SweepRequest) -> list[str]:
    """Return notes on keys that change together, or that apply at some points only."""
    loaded = request.loaded
    params = loaded.recipe.as_dict()["method"]
    alpha = alpha_note(request.checked.space, loaded.tree.value(("method", "lora_alpha")), params.get("lora_alpha"))
    idle = [f"{name} has no effect at some points: {reason}" for name, reason in request.checked.idle.items()]
    return [*idle, *([alpha] if alpha else [])]


def _write(sweep: Sweep, request: SweepRequest, directory: Path, at_edge: Sequence[str]) -> None:
    """Write the record, and what is rendered from it."""
    write_text(
        directory / RECORD, json.dumps(finite(sweep.as_dict()), indent=2, allow_nan=False) + "\n", instead=INSTEAD
    )
    write_report(sweep, directory / REPORT, instead=INSTEAD)
    if sweep.best is not None:
        overrides = overrides_of(sweep.best.values, request.loaded.recipe.method.name)
        best = load_recipe(request.recipe, [*request.overrides, *overrides], NAMES)
        write_text(directory / BEST, best_recipe_text(best, sweep, at_edge), instead=INSTEAD)
