"""Optuna's side of a search: its samplers, its distributions, and points as its parameters."""

from __future__ import annotations

import json
import warnings
import zlib
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from peftcli.studies.sweep.space.search_domain import Choices, Range
from peftcli.studies.sweep.space.search_space import Dimension, Point, SearchSpace
from peftcli.studies.sweep.sweep_request import SamplerName

STARTUP = 8
"""Points that TPE draws at random before it models the scores; a third of the trials where that is less."""


class RepeatableSampler(BaseSampler):  # type: ignore[misc]  # mypy does not read optuna: see pyproject.toml
    """Draws each trial from a generator seeded by the trial's number.

    A command that is stopped and started again thus draws the points that it would have drawn, and workers that share
    a study do not draw the same ones, although all have one seed.

    Args:
        name: `tpe` (multivariate, Bergstra et al. 2011, Falkner et al. 2018) or `random`.
        seed: of the whole search.
        startup: random points before the model.
    """

    def __init__(self, name: SamplerName, seed: int, startup: int) -> None:
        self._name, self._seed, self._startup = name, seed, startup
        self._inner = self._made(0)

    def _made(self, number: int) -> BaseSampler:
        seed = zlib.crc32(f"{self._seed}:{number}".encode())
        if self._name == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():  # that Optuna may change these arguments is nothing a user can act on
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=seed,
                multivariate=True,
                group=True,  # keys that apply under different conditions are modelled apart
                constant_liar=True,  # trials that still run count as bad ones, so that workers look in different places
                n_startup_trials=self._startup,
            )

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Seed the generator for this trial."""
        self._inner = self._made(trial.number)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the keys that are drawn together."""
        space: dict[str, BaseDistribution] = self._inner.infer_relative_search_space(study, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the keys that are drawn together."""
        drawn: dict[str, Any] = self._inner.sample_relative(study, trial, search_space)
        return drawn

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one key."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


def distribution(one: Dimension) -> BaseDistribution:
    """Return Optuna's distribution of a dimension."""
    if isinstance(one.domain, Choices):
        return CategoricalDistribution(tuple(_choice(value) for value in one.domain.values))
    domain: Range = one.domain
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.extremes()[-1]), domain.log, int(domain.step or 1))
    step = None if domain.step is None else float(domain.step)
    return FloatDistribution(float(domain.low), float(domain.extremes()[-1]), domain.log, step)


def _choice(value: Any) -> Any:
    """Return a value as Optuna can store it: lists and mappings become their text."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def suggest(trial: optuna.Trial, space: SearchSpace) -> Point:
    """Return a new point: the sampler's value for each dimension that applies."""

    def draw(one: Dimension) -> Any:
        return value_of(one, _drawn(trial, one))

    return space.fill({}, draw)


def _drawn(trial: optuna.Trial, one: Dimension) -> Any:
    over = distribution(one)
    if isinstance(over, CategoricalDistribution):
        return trial.suggest_categorical(one.name, over.choices)
    if isinstance(over, IntDistribution):
        return trial.suggest_int(one.name, over.low, over.high, step=over.step, log=over.log)
    return trial.suggest_float(one.name, over.low, over.high, step=over.step, log=over.log)


def params_of(point: Point, space: SearchSpace) -> dict[str, Any]:
    """Return a point as Optuna's parameters."""
    return {one.name: _choice(point[one.key]) for one in space.dimensions if one.applies(point) and one.key in point}


def distributions_of(point: Point, space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the distributions of the dimensions that apply at a point."""
    return {one.name: distribution(one) for one in space.dimensions if one.applies(point)}


def value_of(one: Dimension, stored: Any) -> Any:
    """Return the recipe's value for what Optuna stored; a number of a range without a step has at most six digits."""
    if isinstance(one.domain, Choices):
        return next(value for value in one.domain.values if _choice(value) == stored and _alike(value, stored))
    if one.domain.whole:
        return int(stored)
    if one.domain.step is not None:  # a value of the range, with the digits that it has there
        return float(f"{stored:.12g}")
    return min(max(float(f"{stored:.6g}"), float(one.domain.low)), float(one.domain.high))


def _alike(value: Any, stored: Any) -> bool:
    return isinstance(value, list | dict) or isinstance(value, bool) == isinstance(stored, bool)
