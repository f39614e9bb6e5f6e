"""How much of the difference between the trials' scores each key explains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from peftcli.studies.sweep.optuna_points import distributions_of, params_of
from peftcli.studies.sweep.space.search_space import SearchSpace
from peftcli.studies.sweep.sweep_record import SweepTrial

FEWEST = 8
"""Trials with a score below which shares would be invented."""


def importance(
    trials: Sequence[SweepTrial], space: SearchSpace, *, greater_is_better: bool
) -> tuple[dict[str, float], str | None]:
    """Return each key's share, which add up to 1, and None; or nothing and the reason.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255) asks how much each key decides whether a trial is among the best
    fifth. It needs no scikit-learn, and few trials mislead it less than fANOVA's forest. Keys that apply under a
    condition only are left out, since not all trials have them. Trials that were stopped early are left out, too: their
    scores are those of shorter runs.
    """
    names = [one.name for one in space.dimensions if not one.under and (one.domain.size() or 2) > 1]
    scored = [trial for trial in trials if trial.state == "finished" and _number(trial.score)]
    if len(names) < 2:
        return {}, None
    if len(scored) < FEWEST:
        return (
            {},
            f"{len(scored)} trials with a score are too few to tell how much each key matters (at least {FEWEST})",
        )
    if len({trial.score for trial in scored}) == 1:
        return {}, "all trials have the same score: no key matters here"
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize")
    for trial in scored:
        made = optuna.trial.create_trial(
            params=params_of(trial.values, space),
            distributions=distributions_of(trial.values, space),
            value=trial.score,
        )
        study.add_trial(made)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.2)
    found = get_param_importances(study, evaluator=evaluator, params=names)
    total = sum(found.values())
    if not math.isfinite(total) or total <= 0:
        return {}, "the scores do not tell which key matters"
    return {name: share / total for name, share in found.items()}, None


def _number(score: float | None) -> bool:
    return score is not None and math.isfinite(score)
