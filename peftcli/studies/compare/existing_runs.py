"""`peft compare RUN...`: runs that exist, compared as they are; what else differs between them is said first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peftcli.adapters.servers import servers_of
from peftcli.errors import Problem, UserError
from peftcli.inference.metrics import greater_is_better
from peftcli.inference.row_scores import RowScores, score_base, score_rows
from peftcli.names import NAMES
from peftcli.recipe.schema import Recipe
from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe
from peftcli.record.run_directory import RunDirectory, RunStatus
from peftcli.studies.compare.asked import BASE
from peftcli.studies.compare.compare_recipes import data_name
from peftcli.studies.compare.compared_rows import artifact_bytes, curve_of, fill_costs, merges, score_before
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.compare.kept_scores import kept_scores
from peftcli.studies.compare.run_groups import ExistingRun, RunGroup, differences, grouped
from peftcli.studies.compare.verdicts import with_verdicts
from peftcli.studies.engine.trial import CurvePoint

Say = Callable[[str], None]


def compare_runs(
    paths: Sequence[Path], directory: Path, reference: str | None, metric: str | None, command: str, say: Say
) -> Comparison:
    """Return the comparison of runs; nothing is trained.

    Args:
        paths: run directories; those of studies are passed over, which is said.
        directory: where the scores of held-out rows are kept.
        reference: a label, `base` or `none`; None is the base for language models, else none.
        metric: such as `eval_loss`; None takes the runs' `metric_for_best_model`.
        say: receives sentences for the terminal: what differs comes first.

    Raises:
        UserError: a path is no run, or the runs have other tasks, models or held-out rows.
    """
    runs, unfinished = _opened(paths, say)
    _refuse_incomparable(runs)
    chosen = _metric(runs, metric)
    groups = grouped(runs)
    differs = list(differences(runs))
    for text in differs:
        say(text)
    scored = {group.label: [_scores(one, directory, say) for one in group.runs] for group in groups}
    _refuse_other_rows(groups, scored)
    first = runs[0].recipe
    if reference is None and not NAMES.tasks[first.task].has_labels:
        reference = BASE
    labels = [group.label for group in groups]
    if reference not in (None, "none", BASE, *labels):
        raise UserError(
            f"--reference {reference} is no row of this comparison",
            suggestion=f"choose base, none, or one of: {', '.join(labels)}",
        )
    comparison = Comparison(
        task=first.task,
        model=first.model.name_or_path,
        data=data_name(first),
        metric=chosen,
        greater_is_better=_direction(first, chosen),
        rows=len(next(iter(scored.values()))[0]),
        seeds=list(dict.fromkeys(one.recipe.seed for group in groups for one in group.runs)),
        methods=[*(_row(group, chosen) for group in groups), *unfinished],
        reference=None if reference == "none" else reference,
        searched=False,
        differs=differs,
        notes=["runs that existed were compared as they are: nothing was trained, and no learning rate searched"],
        command=command,
    )
    before = kept_scores(_kept_file(runs[0], directory, "before-training"), lambda: score_base(runs[0].loaded))
    return with_verdicts(comparison, scored, [before])


def _opened(paths: Sequence[Path], say: Say) -> tuple[list[ExistingRun], list[ComparedMethod]]:
    """Return the finished runs, and a row for each that is not finished."""
    runs, unfinished = [], []
    for path in dict.fromkeys(paths):
        if any((path / name).exists() for name in ("study.json", "comparison.json", "sweep.json")):
            say(f"{path} is a study, not a run: it is skipped")
            continue
        loaded = load_stored_recipe(stored_recipe(path), NAMES)
        directory = RunDirectory(path)
        if directory.status() is RunStatus.UNFINISHED:
            name = loaded.recipe.method.name
            reason = "the run is not finished: continue it with `peft train RECIPE --resume`"
            unfinished.append(ComparedMethod(str(path), name, status="failed", reason=reason, runs=[str(path)]))
        else:
            runs.append(ExistingRun(path, loaded, directory.summary()))
    if len(runs) < 2:
        what = f"{runs[0].path} alone" if runs else "nothing here"
        raise UserError(f"{what} is a finished run: nothing to compare", suggestion="name two runs or more")
    return runs, unfinished


def _refuse_incomparable(runs: Sequence[ExistingRun]) -> None:
    """Refuse runs whose scores are of other things: another task, no held-out rows, or other ones.

    Raises:
        UserError: a problem for each run that does not belong to the first.
    """
    first = runs[0]
    problems = []
    for one in runs:
        rows = one.summary.get("inputs", {}).get("validation_rows")
        if not rows:
            problems.append(_about(one, "was trained without validation rows", "leave it out of this comparison"))
        elif one.recipe.task != first.recipe.task:
            text = f"is of the task {one.recipe.task}, {first.path} of {first.recipe.task}"
            problems.append(_about(one, text, "compare runs of one task"))
        elif rows != first.summary.get("inputs", {}).get("validation_rows"):
            problems.append(_about(one, f"was evaluated on other held-out rows than {first.path}", _SPLIT))
    if problems:
        raise UserError(problems)


_SPLIT = "compare runs with the same held-out rows; seeds keep them with data.split_seed, a number for all of them"


def _about(run: ExistingRun, text: str, remedy: str) -> Problem:
    return Problem(f"this run {text}", file=str(run.path), suggestion=remedy)


def _refuse_other_rows(groups: Sequence[RunGroup], scored: dict[str, list[RowScores]]) -> None:
    """Refuse runs whose rows are the same texts, but other tokens or labels: a difference of two is of nothing then."""
    known = {scores.identity for several in scored.values() for scores in several}
    if len(known) > 1:
        label = next(iter(scored))
        usual = scored[label][0].identity
        other = next(group for group in groups if any(s.identity != usual for s in scored[group.label]))
        text = f"has other tokens or labels for its held-out rows than {groups[0].runs[0].path}"
        raise UserError(_about(other.runs[0], text, _SPLIT))


def _metric(runs: Sequence[ExistingRun], asked: str | None) -> str:
    """Return the metric to compare: it must be one that every run computed."""
    names = {one.recipe.training.metric_for_best_model for one in runs}
    metric = f"eval_{asked.removeprefix('eval_')}" if asked else names.pop() if len(names) == 1 else "eval_loss"
    for one in runs:
        known = [key for key, value in (one.summary.get("eval") or {}).items() if isinstance(value, float)]
        known = [key for key in known if key != "eval_runtime"]
        if metric not in known:
            raise UserError(
                _about(one, f"has no {metric}", f"choose one that all have, such as --metric {', '.join(known)}")
            )
    return metric


def _direction(recipe: Recipe, metric: str) -> bool:
    given = recipe.training.greater_is_better
    same = metric == recipe.training.metric_for_best_model
    return greater_is_better(metric) if given is None or not same else given


def _kept_file(run: ExistingRun, directory: Path, name: str) -> Path:
    """Return where scores are kept: another file for each run, and for each state of its summary."""
    text = f"{run.path.resolve()} {json.dumps(run.summary, sort_keys=True)}"
    return directory / "scores" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _scores(run: ExistingRun, directory: Path, say: Say) -> RowScores:
    """Return the scores of a run's held-out rows, computed once for each state of its summary."""

    def compute() -> RowScores:
        say(f"scoring the held-out rows of {run.path}")
        return score_rows(run.path)

    return kept_scores(_kept_file(run, directory, run.path.name), compute)


def _row(group: RunGroup, metric: str) -> ComparedMethod:
    params = group.runs[0].recipe.method
    row = ComparedMethod(group.label, params.name, params.model_dump(mode="json", exclude={"name"}))
    row.rate = group.runs[0].recipe.training.learning_rate
    row.merges = merges(params)
    summaries = [one.summary for one in group.runs]
    fill_costs(row, summaries, timed=True)
    row.peak_memory_bytes = max((summary.get("peak_memory_bytes") or 0 for summary in summaries), default=0) or None
    row.adapter_bytes = artifact_bytes(group.runs[0].path)
    row.servers = servers_of(group.runs[0].path)
    row.runs = [str(one.path) for one in group.runs]
    row.scores = [float(summary["eval"][metric]) for summary in summaries]
    row.curves = [curve_of(_curve(one), metric, one.recipe.seed) for one in group.runs]
    before = [value for summary in summaries if (value := score_before(summary, metric)) is not None]
    row.score_before = sum(before) / len(before) if before else None
    return row


def _curve(run: ExistingRun) -> list[CurvePoint]:
    """Return the evaluations that a run wrote down."""
    lines = RunDirectory(run.path).metrics.lines()
    return [
        CurvePoint(line["step"], {key: value for key, value in line.items() if _metric_of(key, value)})
        for line in lines
        if "eval_loss" in line
    ]


def _metric_of(key: str, value: Any) -> bool:
    return key.startswith("eval_") and isinstance(value, int | float) and not isinstance(value, bool)
