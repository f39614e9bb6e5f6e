"""What was typed after `peft compare`, as recipes or runs that a comparison is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftcli.console.method_text import changed_method, split_methods
from peftcli.errors import Problem, UserError
from peftcli.models.own_code import with_allowed_code
from peftcli.names import NAMES
from peftcli.preflight import check_surroundings
from peftcli.recipe.load_recipe import TRUST_REMOTE_CODE, LoadedRecipe, load_recipe
from peftcli.recipe.recipe_overrides import metric_overrides
from peftcli.studies.compare.asked import BASE, FULL, HEAD, Asked
from peftcli.studies.compare.budget.time_budget import parse_budget
from peftcli.studies.compare.candidate import Candidate, check_agreement, labels_of, named_candidates

_RATE = "training.learning_rate"
_METRIC = "training.metric_for_best_model"


@dataclass(frozen=True)
class CompareRequest:
    """The arguments and options, as typed; `rates` is 0 for `--no-search`."""

    paths: Sequence[Path]
    overrides: Sequence[str]
    methods: str | None
    budget: str | None
    rates: int
    seeds: int
    jobs: int
    reference: str | None
    metric: str | None
    storage: str | None
    output: str | None
    trust_code: bool
    command: str

    @property
    def of_runs(self) -> bool:
        """Whether runs that exist are compared.

        Raises:
            UserError: some of the paths are directories, others are files, or are not there.
        """
        directories = [path for path in self.paths if path.is_dir()]
        missing = [path for path in self.paths if not path.exists()]
        if directories and missing:
            raise UserError(f"there is no {missing[0]}", suggestion="check its name, or leave it out")
        if directories and len(directories) < len(self.paths):
            file = next(path for path in self.paths if not path.is_dir())
            raise UserError(
                f"{directories[0]} is a directory, {file} is not: recipes are trained, runs compared as they are",
                suggestion="name recipes alone, or runs alone",
            )
        return bool(directories)

    @property
    def directory(self) -> Path:
        """Where the study and its report go."""
        if self.output is not None:
            return Path(self.output).expanduser()
        first = self.paths[0]
        together = len(self.paths) > 1 and len({path.parent for path in self.paths}) == 1
        name = first.absolute().parent.name if together and first.parent.name else first.stem
        return Path("runs") / f"compare-{name}"


def split_arguments(what: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Return the paths and the overrides among arguments: `a=b` is an override, unless there is such a file.

    Raises:
        UserError: there is no path.
    """
    paths, overrides = [], []
    for text in what:
        if "=" in text and not Path(text).exists():
            overrides.append(text)
        else:
            paths.append(Path(text))
    if not paths:
        raise UserError("nothing to compare", suggestion="name recipes or runs: peft compare configs/*.yaml")
    return paths, overrides


def refuse_for_runs(request: CompareRequest) -> None:
    """Refuse options that say how to train, where runs that exist are compared.

    Raises:
        UserError: one is given.
    """
    given: dict[str, object] = {"--methods": request.methods, "--budget": request.budget, "--storage": request.storage}
    given |= {"--no-search": not request.rates, "KEY=VALUE": request.overrides, "--jobs": request.jobs > 1}
    named = [option for option, value in given.items() if value]
    if named:
        raise UserError(
            f"{named[0]} is for recipes; runs that exist are compared as they are",
            suggestion="leave it out, or name recipes to train",
        )


def read_request(request: CompareRequest) -> Asked:
    """Read the recipes and make sure that they can be compared.

    Raises:
        UserError: every problem of the recipes and the options.
    """
    budget = parse_budget(request.budget) if request.budget is not None else None
    typed = list(request.overrides)
    if request.metric is not None:
        typed += metric_overrides(request.metric)
    if request.trust_code:
        typed.append(TRUST_REMOTE_CODE)
    if request.methods is None:
        candidates = _of_recipes(request.paths, typed)
    else:
        candidates = _of_methods(request.paths, request.methods, typed)
    check_agreement(candidates)
    candidates, reference = _with_reference(candidates, request.reference, typed)
    return Asked(
        candidates,
        reference,
        candidates[0].loaded.recipe.training.metric_for_best_model,
        request.rates,
        request.seeds,
        budget,
        request.jobs,
        request.directory,
        request.storage,
        request.command,
    )


def _of_recipes(paths: Sequence[Path], typed: Sequence[str]) -> list[Candidate]:
    places = [path.resolve() for path in paths]
    twice = [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice", suggestion="name each recipe once")
    found = _all_of(paths, lambda path: _loaded(path, typed))
    labels = labels_of(paths, taken=(BASE, HEAD, "none"))
    return named_candidates(
        [(label, one, one.recipe.training.learning_rate) for label, one in zip(labels, found, strict=True)]
    )


def _of_methods(paths: Sequence[Path], methods: str, typed: Sequence[str]) -> list[Candidate]:
    if len(paths) != 1:
        raise UserError(
            f"--methods is for one recipe, and {len(paths)} are named",
            suggestion="name the recipe that holds model and data; the methods of several recipes need no --methods",
        )
    own = _loaded(paths[0], [one for one in typed if not one.startswith("method.")])
    texts = split_methods(methods)
    found = _all_of(texts, lambda text: _with_method(own, text, typed))
    pairs = zip(texts, found, strict=True)
    return named_candidates([(text, one, one.recipe.training.learning_rate) for text, one in pairs])


def _with_method(own: LoadedRecipe, text: str, typed: Sequence[str]) -> LoadedRecipe:
    """Return a recipe with another method; a learning rate of the recipe is its own method's, and goes with it."""
    changes = changed_method(text, own.recipe.method.name)
    other = text.partition(":")[0] != own.recipe.method.name
    return _loaded(Path(own.path), [*changes, *([f"{_RATE}=null"] if other else []), *typed])


def _loaded(path: Path, changes: Sequence[str]) -> LoadedRecipe:
    """Read and check one recipe.

    Raises:
        UserError: its problems; one of --metric names the option.
    """
    try:
        return with_allowed_code(load_recipe(path, changes, NAMES, surroundings=check_surroundings))
    except UserError as error:
        raise UserError(
            replace(problem, file="--metric", key=None)
            if problem.file is not None and problem.file.startswith(f'override {_METRIC}="eval_')
            else problem
            for problem in error.problems
        ) from error


def _all_of(parts: Sequence[Path] | Sequence[str], load: Callable[..., LoadedRecipe]) -> list[LoadedRecipe]:
    """Load all; raise the problems of all at once."""
    found: list[LoadedRecipe] = []
    problems: dict[Problem, None] = {}
    for part in parts:
        try:
            found.append(load(part))
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise UserError(problems)
    return found


def _with_reference(
    candidates: list[Candidate], asked: str | None, typed: Sequence[str]
) -> tuple[list[Candidate], str | None]:
    """Return the candidates with the reference among them, where it is trained, and the reference's label.

    Raises:
        UserError: there is no such reference.
    """
    labels = [each.label for each in candidates]
    recipe = candidates[0].loaded.recipe
    new_head = NAMES.tasks[recipe.task].has_labels
    if asked in labels:
        return candidates, asked
    if asked is None and not (new_head and recipe.training.train_head):
        return candidates, None if new_head else BASE
    if asked in ("none", BASE):
        return candidates, BASE if asked == BASE else None
    wanted = {None: "freeze:num_layers=0", "head": "freeze:num_layers=0", FULL: FULL}.get(asked)
    if wanted is None:
        raise UserError(
            f"--reference {asked} is no method of this comparison",
            suggestion=f"choose full, head, base, none, or one of: {', '.join(labels)}",
        )
    first = candidates[0].loaded
    label = FULL if wanted == FULL else HEAD
    overrides = [one for one in typed if not one.startswith(("method.", "method="))]
    made = _with_method(_loaded(Path(first.path), overrides), wanted, overrides)
    same = next((each for each in candidates if each.loaded.recipe.method == made.recipe.method), None)
    if same is not None:
        return candidates, same.label
    entries = [(each.label, each.loaded, each.own_rate) for each in candidates]
    return named_candidates([*entries, (label, made, made.recipe.training.learning_rate)]), label
