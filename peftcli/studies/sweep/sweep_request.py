"""What a sweep is asked to do: options and search file together, checked against the recipe before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from peftcli.errors import Problem, UserError
from peftcli.preflight import check_surroundings
from peftcli.recipe.checks.idle_keys import evaluates
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.recipe.recipe_overrides import metric_overrides
from peftcli.recipe.vocabulary import Names
from peftcli.studies.sweep.space.check_search import CheckedSearch, check_search, one_number_key
from peftcli.studies.sweep.space.read_search import Search, search_of_file, search_of_options
from peftcli.suggestions import did_you_mean, nearest

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["none", "median", "hyperband"]
MOST_TRIALS = 10_000

_DEFAULTS: dict[str, Any] = {"trials": 30, "pruner": "none", "seeds": 3, "winners": 3, "metric": None}


@dataclass(frozen=True)
class SweepOptions:
    """The options as typed; None where one was not.

    Args:
        grid, search: texts `key=values`.
        file: the search file.
    """

    grid: Sequence[str] = ()
    search: Sequence[str] = ()
    file: Path | None = None
    trials: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    seeds: int | None = None
    winners: int | None = None
    metric: str | None = None


@dataclass(frozen=True)
class SweepRequest:
    """A sweep that can run.

    Args:
        recipe: the file as typed; `overrides`: the user's, and those that all trials share.
        loaded: the recipe with them.
        checked: the space, and the points of a grid.
        trials: how many of a search; for a grid the number of its points.
        seeds: fresh ones, for the winners; `winners`: how many points are trained again.
        metric: `eval_` and its name.
    """

    recipe: Path
    overrides: tuple[str, ...]
    loaded: LoadedRecipe = field(repr=False)
    checked: CheckedSearch
    sampler: SamplerName
    pruner: PrunerName
    trials: int
    seeds: tuple[int, ...]
    winners: int
    metric: str
    greater_is_better: bool

    @property
    def grid(self) -> bool:
        """Whether every point is tried."""
        return self.sampler == "grid"

    @property
    def number_key(self) -> str | None:
        """The key of a grid over one number: all its values are trained on fresh seeds. None for other searches."""
        one = one_number_key(self.checked.space) if self.grid else None
        return None if one is None else one.key


def prepare_sweep(recipe: Path, overrides: Sequence[str], options: SweepOptions, names: Names) -> SweepRequest:
    """Read and check everything that a sweep was asked to do.

    Args:
        overrides: the user's `key=value` changes, and those that stand for options of the command.

    Raises:
        UserError: every problem of the recipe, or else of the search.
    """
    search = _read(options)
    chosen = _settings(search, options)
    metric = () if chosen["metric"] is None else metric_overrides(chosen["metric"])
    try:
        loaded = load_recipe(recipe, [*overrides, *metric], names, surroundings=check_surroundings)
    except UserError as error:
        raise UserError(_about_metric(error, str(chosen["metric"]), metric)) from error
    _refuse_unscored(loaded)
    spec = loaded.recipe
    assert spec.data is not None  # `load_recipe` asked for it
    split = spec.seed if spec.data.split_seed is None else spec.data.split_seed
    shared = (*overrides, *metric, f"data.split_seed={split}")

    def load(overrides: Sequence[str], *, thorough: bool) -> LoadedRecipe:
        surroundings = check_surroundings if thorough else None
        return load_recipe(recipe, [*shared, *overrides], names, surroundings=surroundings)

    sampler: SamplerName = chosen["sampler"] or ("grid" if options.grid else "tpe")
    checked = check_search(search.space, loaded, load, names, grid=sampler == "grid")
    from peftcli.inference.metrics import greater_is_better

    name, greater = spec.training.metric_for_best_model, spec.training.greater_is_better
    return SweepRequest(
        recipe=recipe,
        overrides=shared,
        loaded=loaded,
        checked=checked,
        sampler=sampler,
        pruner=chosen["pruner"],
        trials=len(checked.points) if sampler == "grid" else chosen["trials"],
        seeds=tuple((spec.seed + 1 + index) % 2**32 for index in range(chosen["seeds"])),
        winners=chosen["winners"],
        metric=name,
        greater_is_better=greater_is_better(name) if greater is None else greater,
    )


def _read(options: SweepOptions) -> Search:
    """Return the search of the one way that was typed.

    Raises:
        UserError: there is none, or there are two.
    """
    typed = {"--grid": bool(options.grid), "--search": bool(options.search), "--search-file": options.file is not None}
    given = [option for option, there in typed.items() if there]
    if not given:
        remedy = "for instance --grid method.r=4,8,16 or --search training.learning_rate=log:1e-5..1e-2 --trials 20"
        raise UserError("nothing to search", suggestion=remedy)
    if len(given) > 1:
        remedy = "to draw from listed values, write --search method.r=4,8,16; to try all, give every key with --grid"
        raise UserError(f"{' and '.join(given)} cannot be given together", suggestion=remedy)
    if options.file is not None:
        return search_of_file(options.file)
    return search_of_options(given[0], options.grid or options.search)


def _settings(search: Search, options: SweepOptions) -> dict[str, Any]:
    """Return the settings: typed ones, then the file's, then defaults.

    Raises:
        UserError: a value that is none; says at which option or line.
    """
    kinds: dict[str, Any] = {"sampler": get_args(SamplerName), "pruner": get_args(PrunerName)}
    found: dict[str, Any] = {"sampler": None, **_DEFAULTS}
    problems = []
    for name in found:
        typed, written = getattr(options, name), search.settings.get(name)
        value = written if typed is None else typed
        if value is None:
            continue
        wrong = _wrong(name, value, kinds.get(name))
        if wrong:
            line = search.lines.get(name) if typed is None else None
            where = str(options.file) if typed is None else f"--{name}"
            problems.append(Problem(wrong[0], file=where, line=line, key=name, suggestion=wrong[1]))
        found[name] = value
    if problems:
        raise UserError(problems)
    if found["sampler"] == "grid" and options.trials is not None:
        raise UserError("--trials is for a search; a grid has its own number", suggestion="leave --trials out")
    if options.grid and options.trials is not None and found["sampler"] is None:
        raise UserError("--trials is for a search; a grid tries every point", suggestion="use --sampler random or tpe")
    return found


def _wrong(name: str, value: Any, words: Sequence[str] | None) -> tuple[str, str] | None:
    """Return what is wrong with a setting, and the remedy."""
    if words is not None:
        if value in words:
            return None
        return f"there is no {name} {value!r}", did_you_mean(nearest(str(value), words), f"one of {', '.join(words)}")
    if name == "metric":
        return None if isinstance(value, str) and value.strip() else ("expected a metric", "such as eval_loss")
    most = MOST_TRIALS if name == "trials" else 100
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        return f"{name} = {value!r}; expected a whole number from 1 to {most:,}", "write a number of that range"
    return None


def _about_metric(error: UserError, metric: str, override: Sequence[str]) -> list[Problem]:
    """Return the problems; those of the metric name the option."""
    places = [f"override {one}" for one in override]
    return [replace(one, file=f"--metric {metric}", key=None) if one.file in places else one for one in error.problems]


def _refuse_unscored(loaded: LoadedRecipe) -> None:
    """Refuse a recipe whose runs have no score.

    Raises:
        UserError: no rows are held out, or nothing is evaluated.
    """
    why = evaluates(loaded.recipe, None)
    if why is not None:
        key = "training.eval_strategy" if loaded.recipe.training.eval_strategy == "no" else "data.val_set_size"
        remedy = "hold rows out (data.val_set_size=0.1), or name data.validation; leave training.eval_strategy at auto"
        raise UserError(loaded.problem(key, f"a sweep compares scores of held-out rows, and {why}", remedy))
