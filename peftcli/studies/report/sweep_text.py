"""The words and cells of a sweep's report that its table, its Markdown and its page share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from peftcli.record.shown_numbers import duration, metric
from peftcli.studies.report.shell.report_numbers import ScoreScale
from peftcli.studies.sweep.sweep_record import Sweep, SweepTrial, SweepWinner

LUCKY = "one seed each: the best of them is too good by chance, so these are not the result"
"""What must be read beside the scores of a search."""


def searched_keys(sweep: Sweep) -> list[str]:
    """Return the recipe's keys in the order in which trials name them."""
    found: dict[str, None] = {}
    for trial in sweep.trials:
        found |= dict.fromkeys(trial.values)
    return list(found)


def value_text(value: Any) -> str:
    """Return one value of a trial: text as it is, numbers in at most four digits."""
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(values: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """Return a trial's values by key; nothing where a key does not apply."""
    return [value_text(values[key]) if key in values else "" for key in keys]


def winner_rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the values that were trained again on fresh seeds."""
    keys = searched_keys(sweep)
    headings = [*keys, sweep.metric, "95% interval", "seeds", "verdict"]
    scale = ScoreScale(sweep.metric, sweep.greater_is_better)
    return headings, [[*cells(one.values, keys), *_winner(one, scale)] for one in sweep.winners]


def _winner(one: SweepWinner, scale: ScoreScale) -> list[str]:
    if one.score is None or one.verdict is None:
        return ["", "", str(len(one.seeds)), one.reason or "no run has a score"]
    verdict = one.verdict
    if one.verdict == "behind" and one.difference is not None:
        verdict = f"behind by {scale.difference_text(one.difference, one.difference_interval)}"
    return [scale.score(one.score, one.interval), scale.range(one.interval), str(len(one.seeds)), verdict]


def trial_rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the trials, the best score first, those without one last."""
    keys = searched_keys(sweep)
    sign = -1.0 if sweep.greater_is_better else 1.0

    def order(trial: SweepTrial) -> tuple[bool, float, int]:
        complete = trial.state == "finished" and trial.score is not None
        return not complete, sign * trial.score if trial.score is not None else 0.0, trial.number

    rows = [
        [
            str(trial.number),
            *cells(trial.values, keys),
            "" if trial.score is None else metric(sweep.metric, trial.score),
            trial.state if trial.reason is None else f"{trial.state}: {trial.reason}",
        ]
        for trial in sorted(sweep.trials, key=order)
    ]
    return ["trial", *keys, f"{sweep.metric}, one seed", "state"], rows


def facts(sweep: Sweep) -> list[str]:
    """Return what was done, a sentence each: how many trials, how they were chosen, how long it took."""
    states: dict[str, int] = {}
    for trial in sweep.trials:
        states[trial.state] = states.get(trial.state, 0) + 1
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    found = [f"{len(sweep.trials)} trials ({counted}) by {sweep.sampler}, pruned by {sweep.pruner}"]
    found.append(f"{sweep.rows} held-out rows, the same for all; {duration(sweep.seconds)} of training")
    if sweep.importance:
        shares = ", ".join(f"{key} {100 * share:.0f}%" for key, share in sorted_shares(sweep))
        found.append(f"importance of the keys for being among the best trials (PED-ANOVA): {shares}")
    return found


def sorted_shares(sweep: Sweep) -> list[tuple[str, float]]:
    """Return the importance of each key, the largest first."""
    return sorted(sweep.importance.items(), key=lambda pair: -pair[1])
