"""The winners of a search, trained again on seeds that chose nothing: only their scores are a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peftcli.inference.row_scores import RowScores
from peftcli.studies.compare.kept_scores import trial_scores
from peftcli.studies.compare.trial_results import final_score
from peftcli.studies.engine.trial import TrialResult
from peftcli.studies.evidence.judgement import judge
from peftcli.studies.sweep.run_settings import SweepWatcher
from peftcli.studies.sweep.search_trials import SearchTrials, Tried
from peftcli.studies.sweep.sweep_record import SweepWinner
from peftcli.studies.sweep.sweep_request import SweepRequest


def winners_of(tried: Sequence[Tried], request: SweepRequest) -> list[Tried]:
    """Return the points with the best scores of the search, the best first; of a grid over one number all."""
    sign = -1.0 if request.greater_is_better else 1.0
    scored = [
        (sign * score, number, one)
        for number, one in enumerate(tried)
        if one.result is not None
        and one.result.state == "finished"
        and (score := final_score(one.result, request.metric)) is not None
    ]
    ranked = [one for _, _, one in sorted(scored, key=lambda entry: entry[:2])]
    return ranked if request.number_key is not None else ranked[: request.winners]


def run_winners(
    winners: Sequence[Tried], request: SweepRequest, trials: SearchTrials, watch: SweepWatcher
) -> dict[str, list[TrialResult]]:
    """Train each winner on every fresh seed, a seed of all winners after the other; return results by name."""
    if not winners:
        return {}
    runs = [(one, seed) for seed in request.seeds for one in winners]
    watch.phase("the winners on fresh seeds", len(runs), None)
    results = trials.train([trials.fresh_trial(one.point, seed) for one, seed in runs])
    found: dict[str, list[TrialResult]] = {one.name: [] for one in winners}
    for (one, _), result in zip(runs, results, strict=True):
        found[one.name].append(result)
    return found


def judge_winners(
    winners: Sequence[Tried], results: Mapping[str, Sequence[TrialResult]], request: SweepRequest, study: Path
) -> tuple[list[SweepWinner], int]:
    """Return the winners with their verdicts, the best first, and how many rows were held out."""
    scored: dict[str, list[RowScores]] = {}
    found: dict[str, SweepWinner] = {}
    for one in winners:
        ended = [
            (seed, result)
            for seed, result in zip(request.seeds, results[one.name], strict=True)
            if result.state == "finished"
        ]
        reason = next((result.reason for result in results[one.name] if result.reason), None)
        found[one.name] = SweepWinner(
            one.point,
            seeds=[seed for seed, _ in ended],
            runs=[result.run for _, result in ended if result.run is not None],
            reason=None if ended else reason or "no run finished",
        )
        if ended:
            scored[one.name] = [trial_scores(study, result.name) for _, result in ended]
    judged = judge(scored, metric=request.metric, greater_is_better=request.greater_is_better, reference=None)
    for name, judgement in judged.items():
        winner = found[name]
        winner.scores, winner.score, winner.interval = list(judgement.scores), judgement.score, judgement.interval
        winner.verdict, winner.difference = judgement.verdict, judgement.difference
        winner.difference_interval, winner.p_best = judgement.difference_interval, judgement.p_best
    rows = max((len(scores[0]) for scores in scored.values()), default=0)
    ordered = sorted(found.values(), key=lambda one: (one.score is None, one.verdict != "best", one.difference or 0.0))
    return ordered, rows
