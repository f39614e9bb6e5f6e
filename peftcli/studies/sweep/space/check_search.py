"""Check a search before anything runs: every key and value by loading the recipe with it, and the size of the grid."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from peftcli.errors import Problem, UserError
from peftcli.recipe.checks.idle_keys import evaluates, idle_reasons
from peftcli.recipe.field_descriptions import field_at, members, unwrap
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.yaml_lines import Key
from peftcli.studies.sweep.space.point_overrides import METHOD_NAME, overrides_of, point_text
from peftcli.studies.sweep.space.search_domain import Choices, Range, WrongDomain, fitted
from peftcli.studies.sweep.space.search_space import Dimension, Point, SearchSpace, unique_points

MOST_POINTS = 1000
"""Points of a grid: each is a whole training run, so that more is a mistake."""
MOST_CORNERS = 64  # a search is checked at all its corners up to this number, else at some
SAMPLED = 32  # random points of a search that are checked besides
SHOWN = 12  # problems that are printed

_HELD_OUT = (
    "data.path", "data.datasets", "data.validation", "data.val_set_size", "data.split", "data.config", "data.stratify",
    "data.group_by", "data.split_rule", "data.split_seed", "data.streaming", "data.max_eval_rows",
)  # fmt: skip
"""Keys that decide which rows are held out and scored."""


class Load(Protocol):
    """Loads the recipe with further overrides, or raises a `UserError` with every problem."""

    def __call__(self, overrides: Sequence[str], *, thorough: bool) -> LoadedRecipe:
        """Load it; look at the files that it names, too, if `thorough`."""
        ...


THOROUGH = 24
"""Points at which files are looked at: a third of a second each. After these, only where a key names other files."""


@dataclass(frozen=True)
class CheckedSearch:
    """A search that can run.

    Args:
        space: with ranges of whole numbers where the keys take such.
        points: of a grid, those that differ in what they train; empty where the space is sampled.
        idle: by key that has no effect at some points: the reason.
    """

    space: SearchSpace
    points: tuple[Point, ...]
    idle: dict[str, str]


def check_search(space: SearchSpace, base: LoadedRecipe, load: Load, names: Names, *, grid: bool) -> CheckedSearch:
    """Check a search against the recipe's schema and its other checks.

    Args:
        space: as it was read.
        base: the recipe without the search.
        load: loads it with the changes of a point.
        grid: whether every point is tried; all are then loaded, else the corners and a sample.

    Raises:
        UserError: every problem, each at the option or line that gave the key.
    """
    problems = [*_reserved(space)]
    space, wrong = _typed(space, base.recipe, names)
    problems += wrong
    if problems:
        raise UserError(problems)
    if grid:
        _refuse_endless(space)
    seed = random.Random(0)
    every = list(space.grid()) if grid else [*space.corners(MOST_CORNERS), *space.sample(SAMPLED, seed)]
    points = unique_points(every)
    thorough = _thorough(points)
    checks = [
        _check_point(point, space, base, partial(load, thorough=place in thorough), names)
        for place, point in enumerate(points)
    ]
    problems = list(dict.fromkeys(problem for check in checks for problem in check.problems))
    if problems:
        rest = len(problems) - SHOWN
        more = [Problem(f"{rest} more problems of other points are not shown")] if rest > 0 else []
        raise UserError([*problems[:SHOWN], *more])
    idle = {key: reason for check in checks for key, reason in check.idle.items()}
    for key, reason in idle.items():
        touched = [check for point, check in zip(points, checks, strict=True) if key in point]
        if all(key in check.idle for check in touched):
            raise UserError(_at(space, key, f"{key} has no effect: {reason}", "leave it out of the search"))
    kept = {check.trains: point for point, check in reversed(list(zip(points, checks, strict=True)))}
    distinct = [point for point in points if any(point is one for one in kept.values())]
    return CheckedSearch(space, tuple(distinct) if grid else (), idle)


@dataclass(frozen=True)
class _Checked:
    """What loading one point found; `trains` is equal where two points train the same."""

    problems: list[Problem]
    idle: dict[str, str]
    trains: str


def _thorough(points: Sequence[Point]) -> set[int]:
    """Return the places of the points at which files are looked at: the first ones, and those with other files."""
    seen: set[str] = set()
    places = set(range(min(THOROUGH, len(points))))
    for place, point in enumerate(points):
        files = json.dumps({key: value for key, value in point.items() if key.startswith(_NAME_FILES)}, sort_keys=True)
        if files not in seen:
            places.add(place)
        seen.add(files)
    return places


_NAME_FILES = ("model", "data", "method.init_from", METHOD_NAME)
"""Keys, or the blocks above them, that name files or what must fit them."""


def _check_point(
    point: Point,
    space: SearchSpace,
    base: LoadedRecipe,
    load: Callable[[Sequence[str]], LoadedRecipe],
    names: Names,
) -> _Checked:
    overrides = overrides_of(point, base.recipe.method.name)
    try:
        loaded = load(overrides)
    except UserError as error:
        return _Checked([_placed(problem, point, space) for problem in error.problems], {}, "")
    why = evaluates(loaded.recipe, None)
    if why is not None:
        text = f"nothing is evaluated at {point_text(point)}: {why}"
        return _Checked([Problem(text, suggestion="leave the value out")], {}, "")
    idle = {key: reason for key, reason in idle_reasons(loaded, names).items() if key in point}
    effective = {key: value for key, value in point.items() if key not in idle}
    return _Checked([], idle, json.dumps(effective, sort_keys=True))


def _placed(problem: Problem, point: Point, space: SearchSpace) -> Problem:
    """Return a problem of a recipe with overrides as one of the option or line that gave the value."""
    key = next((one for one in point if problem.file and problem.file.startswith(f"override {one}=")), None)
    if key is None and problem.key is not None and problem.key in point:
        key = problem.key
    if key is None:
        return replace(problem, message=f"{problem.message} (with {point_text(point)})")
    one = space.dimension(key, point)
    assert one is not None  # the point has a value of it
    suggestion = problem.suggestion
    if METHOD_NAME in point and key.startswith("method.") and key != METHOD_NAME:
        nest = (
            f"for one method only, write it in a search file below that method: {METHOD_NAME}: {{NAME: {{{key}: ...}}}}"
        )
        suggestion = f"{suggestion}\n    {nest}" if suggestion else nest
    return Problem(problem.message, one.file, one.line, key, suggestion)


def _reserved(space: SearchSpace) -> Iterator[Problem]:
    """Yield a problem for each key that a sweep sets itself, or that would make its scores incomparable."""
    for one in space.dimensions:
        head = one.key.split(".")[0]
        reason = remedy = None
        if any(f"{one.key}.".startswith(f"{key}.") for key in _HELD_OUT) or one.key == "data":
            reason, remedy = (
                "it decides which rows are held out, and scores of other rows say nothing",
                "sweep each alone",
            )
        elif head == "task":
            reason, remedy = "scores of two tasks cannot be compared", "sweep each task alone"
        elif head == "output_dir":
            reason, remedy = "each trial has a directory of its own in the study", "use -o DIR for the study"
        elif head == "seed":
            reason, remedy = "a seed is not chosen by its score", "use --seeds N: fresh seeds for the winners"
        elif one.key in ("training.metric_for_best_model", "training.greater_is_better"):
            reason, remedy = "the metric decides what is best", "use --metric"
        if reason:
            yield Problem(f"{one.key} cannot be searched: {reason}", one.file, one.line, one.key, remedy)


def _typed(space: SearchSpace, recipe: Recipe, names: Names) -> tuple[SearchSpace, list[Problem]]:
    """Return the space with its ranges in the type of their keys, and the problems of those that have none."""
    made: list[Dimension] = []
    problems: list[Problem] = []
    for one in space.dimensions:
        if isinstance(one.domain, Range):
            method = str(dict(one.under).get(METHOD_NAME, recipe.method.name))
            kinds = number_kinds(one.key, method, names)
            try:
                if kinds is not None and not kinds:
                    raise WrongDomain(f"{one.key} takes no numbers, so it has no range", "list its values: a,b,c")
                whole = one.domain.whole if kinds is None else float not in kinds
                one = replace(one, domain=fitted(one.domain, whole=whole))
            except WrongDomain as wrong:
                problems.append(Problem(wrong.message, one.file, one.line, one.key, wrong.suggestion))
        made.append(one)
    return SearchSpace(tuple(made)), problems


def number_kinds(key: str, method: str, names: Names) -> set[type] | None:
    """Return which of `int` and `float` a key of the recipe takes, or None where the schema cannot tell."""
    path: Key = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    block = names.methods.params_model(method) if path[0] == "method" else Recipe
    found = None if block is None else field_at(block, path[1:] if path[0] == "method" else path)
    if found is None:
        return None
    return {plain for member in members(found[0]) if (plain := unwrap(member)[0]) in (int, float)}


def _refuse_endless(space: SearchSpace) -> None:
    """Refuse a grid that cannot be listed, or has too many points.

    Raises:
        UserError: says which key, or how many points.
    """
    endless = space.unlisted()
    if endless is not None:
        text = f"a grid lists every value, and {endless.text} has no end of them"
        remedy = "give the range a step (0..0.1:0.02), list the values, or use --search with --trials"
        raise UserError(Problem(text, endless.file, endless.line, endless.key, remedy))
    size = space.grid_size()
    if size > MOST_POINTS:
        sizes = " x ".join(f"{one.domain.size():,} of {one.key}" for one in space.dimensions)
        text = f"the grid has {size:,} points ({sizes}); at most {MOST_POINTS:,} are trained"
        raise UserError(text, suggestion="take fewer values, or --search with --trials N, which tries N points of it")


def _at(space: SearchSpace, key: str, message: str, suggestion: str) -> Problem:
    one = next(one for one in space.dimensions if one.key == key)
    return Problem(message, one.file, one.line, key, suggestion)


def one_number_key(space: SearchSpace) -> Dimension | None:
    """Return the only key of a space, if it is one and its values are listed numbers, in an order therefore."""
    if len(space.dimensions) != 1:
        return None
    one = space.dimensions[0]
    numbers = one.domain.numbers if isinstance(one.domain, Choices) else one.domain.size() is not None
    return one if numbers else None
