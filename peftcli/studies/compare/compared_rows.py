"""The rows of a comparison, from what its trials left: scores, rates, curves, and what each run cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftcli.adapters.servers import servers_of
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from peftcli.studies.compare.candidate import Candidate
from peftcli.studies.compare.comparison import ComparedMethod, Curve, RatePoint
from peftcli.studies.compare.phases import Found
from peftcli.studies.compare.trial_results import final_score
from peftcli.studies.engine.trial import CurvePoint, TrialResult


def compared_method(candidate: Candidate, found: Found, metric: str, study: Path) -> ComparedMethod:
    """Return a method's row without its verdict, which needs all methods' scores."""
    params = candidate.loaded.recipe.method
    row = ComparedMethod(candidate.label, params.name, params.model_dump(mode="json", exclude={"name"}))
    timing = found.timing[candidate.name]
    row.peak_memory_bytes = timing.peak_memory_bytes
    tried = found.rates.get(candidate.name, {})
    row.rates = [
        RatePoint(rate, final_score(result, metric) if result.state == "finished" else None, result.state, result.run)
        for rate, result in sorted(tried.items())
    ]
    row.rate = found.chosen.get(candidate.name)
    results = found.scores.get(candidate.name, [])
    by_seed = dict(zip(found.seeds, results, strict=True)) if results else {}
    finished = {seed: result for seed, result in by_seed.items() if result.state == "finished"}
    row.merges = merges(params)
    _set_status(row, results or list(tried.values()) or [timing], list(finished.values()), seeds=bool(results))
    fill_costs(row, [one.summary for one in finished.values()] or [timing.summary], timed=bool(finished))
    fill_runs(row, finished, metric, study)
    row.scores = [score for one in finished.values() if (score := final_score(one, metric)) is not None]
    return row


def merges(params: MethodParams) -> bool:
    """Return whether what a method trains folds into the base's weights."""
    return registry.method(params.name).why_not_mergeable(params) is None


def _set_status(
    row: ComparedMethod, results: Sequence[TrialResult], finished: Sequence[TrialResult], *, seeds: bool
) -> None:
    """Set how a method ended: by its scoring runs, or the earlier ones that it did not get beyond.

    Args:
        seeds: `results` are the scoring runs.
    """
    if finished:
        lost = [result for result in results if result.state != "finished"]
        if lost:
            reason = lost[0].reason or "no reason is known"
            row.reason = f"{len(lost)} of {len(results)} seeds {lost[0].state}: {reason}"
        return
    worst = next((one for one in results if one.state in ("refused", "failed", "diverged")), results[0])
    row.status = worst.state
    row.reason = worst.reason
    if len(results) > 1 and all(one.state == "diverged" for one in results):
        rates = ", ".join(f"{point.rate:g}" for point in row.rates)
        row.reason = f"all {len(results)} seeds diverged: {worst.reason}" if seeds else f"every rate diverged: {rates}"


def fill_costs(row: ComparedMethod, summaries: Sequence[dict[str, Any]], *, timed: bool) -> None:
    """Fill in counts, and where `timed` the mean speed and time of the runs."""
    known = [summary for summary in summaries if summary.get("total") and summary.get("trainable") is not None]
    if not known:
        return
    row.trainable, row.saved = known[0]["trainable"], known[0].get("saved")  # a run that diverged saved nothing
    row.percent = 100.0 * known[0]["trainable"] / known[0]["total"]
    if timed:
        row.tokens_per_second = statistics.fmean(summary["tokens_per_second"] for summary in known)
        row.seconds = statistics.fmean(summary["train_runtime"] for summary in known)


def fill_runs(row: ComparedMethod, finished: Mapping[int, TrialResult], metric: str, study: Path) -> None:
    """Fill in what the scoring runs left on disk, and their curves.

    Args:
        finished: by seed.
    """
    row.runs = [result.run for result in finished.values() if result.run is not None]
    row.curves = [curve_of(result.curve, metric, seed) for seed, result in finished.items()]
    before = [value for one in finished.values() if (value := score_before(one.summary, metric)) is not None]
    row.score_before = statistics.fmean(before) if before else None
    if row.runs:
        row.adapter_bytes = artifact_bytes(study / row.runs[0])
        row.servers = servers_of(study / row.runs[0])


def curve_of(points: Sequence[CurvePoint], metric: str, seed: int) -> Curve:
    """Return the evaluations of a run that have the metric."""
    known = [point for point in points if metric in point.metrics]
    return Curve(
        seed,
        [point.step for point in known],
        [point.metrics[metric] for point in known],
        [point.metrics.get("eval_loss", point.metrics[metric]) for point in known],
    )


def score_before(summary: Mapping[str, Any], metric: str) -> float | None:
    """Return the metric before the first step, None if it was not computed."""
    value = (summary.get("eval_before") or {}).get(metric)
    return float(value) if isinstance(value, int | float) else None


def artifact_bytes(run: Path) -> int | None:
    """Return the size of the weights that a run left: an adapter's, or those of a complete model."""
    files = [file for part in ("adapter", "model") for file in (run / part).glob("*.safetensors")]
    return sum(file.stat().st_size for file in files) or None
