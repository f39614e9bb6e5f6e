"""Metrics by name: which a task can measure, and which one chooses the adapter that is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from peftcli.recipe.preference_losses import prediction_kind
from peftcli.recipe.pydantic_messages import Finding, choice_hint
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names


def check_metrics(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield unknown metrics in `training.metrics` and `training.metric_for_best_model`."""
    kinds: Collection[str] = names.tasks[recipe.task].predictions
    chosen = recipe.model.problem_type or prediction_kind(recipe.training)
    if chosen is not None and chosen in kinds:
        kinds = [chosen]
    known = frozenset(name for kind in kinds for name in names.metrics[kind])
    every = f"the metrics of {recipe.model.problem_type or recipe.task} are: {', '.join(sorted(known))}"
    for index, name in enumerate(recipe.training.metrics):
        if name not in known and not any(name in names.metrics[kind] for kind in kinds):
            reason = f"training.metrics: {_wrong(name, recipe, names)}"
            yield Finding(("training", "metrics", index), reason, _nearest(name, known, every))
    best = recipe.training.metric_for_best_model
    if not best.startswith("eval_"):
        reason = f"training.metric_for_best_model = {best!r}; expected eval_ and a metric"
        write = f"write eval_{best}" if best in known or best == "loss" else every
        yield Finding(("training", "metric_for_best_model"), reason, write)
        return
    name = _without_set(best.removeprefix("eval_"), recipe)
    several = {name for kind in kinds for name, metric in names.metrics[kind].items() if metric.several}
    single = known - several | {"loss"}
    plugins = [] if name in known or name == "loss" else [names.metrics[kind].get(name) for kind in kinds]
    if name not in single and not any(found is not None and not found.several for found in plugins):
        reason = f"training.metric_for_best_model = {best!r}: {_wrong(name, recipe, names)}"
        yield Finding(("training", "metric_for_best_model"), reason, _nearest(name, single, every, "eval_"))


def _without_set(name: str, recipe: Recipe) -> str:
    """Return `eval_SET_METRIC`'s metric, where SET is a named validation set."""
    validation = recipe.data.validation if recipe.data is not None else None
    sources = validation if isinstance(validation, list) else [validation] if validation is not None else []
    return set_and_metric(name, [source.name or "" for source in sources])[1]


def set_and_metric(name: str, sets: Iterable[str]) -> tuple[str, str]:
    """Return the validation set that a metric's name without `eval_` begins with, "" for none, and the metric.

    Where the name of one set begins with that of another (`news`, `news_old`), the longer one is meant.
    """
    found = max((each for each in sets if each and name.startswith(f"{each}_")), key=len, default="")
    return found, name[len(found) + 1 :] if found else name


def _wrong(name: str, recipe: Recipe, names: Names) -> str:
    owners = [kind for kind, known in names.metrics.items() if name in known]
    task = recipe.model.problem_type or recipe.task
    return f"{name!r} is for {', '.join(owners)}, not {task}" if owners else f"there is no metric {name!r}"


def _nearest(name: str, known: frozenset[str], every: str, prefix: str = "") -> str:
    near = choice_hint(name, [prefix + word for word in sorted(known)] if prefix else sorted(known))
    return f"{near} {every}" if near else every
