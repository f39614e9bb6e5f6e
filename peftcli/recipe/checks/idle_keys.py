"""Keys that a recipe writes and that change nothing here: each is named in a note, with the reason.

What contradicts the rest of a recipe is refused by `checks`. What is only idle is not: a recipe is often copied, and
one that a run stored must stay readable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peftcli.recipe.checks.method_checks import methods_of
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.schema import DataSource, DataSpec, Recipe, TrainingSpec
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.value_tree import dotted

Reasons = Mapping[str, str | None]
"""Dotted key to the reason why it has no effect; None where it has one."""

PLAIN_FORMATS = ("text", "pretokenized")
"""Formats whose rows are no conversations: no template is put around them, and all of a text is learnt."""


@dataclass(frozen=True)
class KnownRows:
    """What is known of the rows once they are prepared.

    Args:
        formats: of the training rows; empty where they are not known.
        problem: kind of label, None without labels.
        validation: validation rows.
    """

    formats: Sequence[str]
    problem: str | None
    validation: int


def idle_keys(loaded: LoadedRecipe, names: Names, rows: KnownRows | None = None) -> list[str]:
    """Return a sentence for each key that was written and has no effect.

    Args:
        loaded: with the places where keys were written; a key that is left out, or off, is never named.
        names: what a recipe can name.
        rows: None before they are prepared: what depends on them is not looked at.
    """
    return [f"{key} has no effect: {why}" for key, why in idle_reasons(loaded, names, rows).items()]


def idle_reasons(loaded: LoadedRecipe, names: Names, rows: KnownRows | None = None) -> dict[str, str]:
    """Return the reason by dotted key for each key that was written and has no effect; see `idle_keys`."""
    recipe = loaded.recipe
    reasons = {key: reason for rule in _RULES for key, reason in rule(recipe, names, rows).items() if reason}
    return {key: why for key, why in reasons.items() if _is_on(loaded, key)}


def _is_on(loaded: LoadedRecipe, key: str) -> bool:
    """Tell whether a key was written with a value other than null, 0, false or nothing.

    For a key that is true by default `false` counts, too.
    """
    value = loaded.tree.value(tuple(int(part) if part.isdigit() else part for part in key.split(".")))
    return bool(value) or (value is False and key in _ON_BY_DEFAULT)


_ON_BY_DEFAULT = ("model.bnb_4bit_use_double_quant",)


def evaluates(recipe: Recipe, rows: KnownRows | None) -> str | None:
    """Return why nothing is evaluated, None where something is (or may be, before the rows are prepared)."""
    if recipe.training.eval_strategy == "no":
        return "training.eval_strategy is no"
    data = recipe.data
    nothing_held_out = data is not None and data.validation is None and not data.val_set_size
    if nothing_held_out or (rows is not None and not rows.validation):
        return "there are no validation rows"
    return None


def _model(recipe: Recipe, names: Names, _rows: KnownRows | None) -> Reasons:
    model = recipe.model
    four_bits = model.load_in_4bit or names.methods.info(recipe.method.name).forces_4bit
    plain = None if four_bits or model.load_in_8bit else "the base is not quantised"
    return {
        "model.bnb_4bit_use_double_quant": None if four_bits else "the base is not quantised to 4 bits",
        "model.min_quantized_share": plain,
    }


def _data(recipe: Recipe, names: Names, rows: KnownRows | None) -> Reasons:
    data = recipe.data
    if data is None:
        return {}
    kind = names.tasks[recipe.task].reads
    mixed = "each source of data.datasets has its own" if data.datasets else None
    streamed = "the rows are streamed" if data.streaming and data.validation is None else None
    formats = [] if rows is None else rows.formats
    plain = bool(formats) and set(formats) <= set(PLAIN_FORMATS)
    untemplated = f"rows of the format {' and '.join(formats)} are no conversations" if plain else None
    templates = kind == "text" and data.chat_template != "none"
    return {
        "data.val_set_size": _why_not_split(recipe, data, own=True),
        "data.split_seed": _why_nothing_drawn(recipe, data),
        "data.max_eval_rows": evaluates(recipe, rows),
        "data.stratify": _why_not_split(recipe, data),
        "data.group_by": _why_not_split(recipe, data),
        "data.config": mixed,
        "data.split": mixed,
        "data.chat_template": untemplated if templates else None,
        "data.train_on": untemplated if kind == "text" and data.train_on != "completions" else None,
        "data.max_fully_masked": "each row has a label" if kind == "labelled" else None,
        "data.num_proc": streamed,
        "data.cache_dir": streamed,
        **_sources(data),
    }


def _why_not_split(recipe: Recipe, data: DataSpec, *, own: bool = False) -> str | None:
    if data.validation is not None:
        return "the validation rows are those of data.validation"
    if recipe.training.eval_strategy == "no":
        return "training.eval_strategy is no, so all rows are trained on"
    return None if own or data.val_set_size else "data.val_set_size is 0, so no rows are split off"


def _why_nothing_drawn(recipe: Recipe, data: DataSpec) -> str | None:
    if data.streaming:
        return "a stream holds out its first rows"
    weighted = any(source.weight != 1 for source in data.datasets or ())
    return None if weighted or data.max_rows or data.max_eval_rows else _why_not_split(recipe, data)


def _sources(data: DataSpec) -> Reasons:
    reasons: dict[str, str | None] = {}
    for index in range(len(data.datasets or ())):
        reasons[f"data.datasets.{index}.name"] = "only validation sets are called by their names"
    several = isinstance(data.validation, list)
    for index, _ in enumerate(_listed(data)):
        place = f"data.validation.{index}" if several else "data.validation"
        reasons[f"{place}.weight"] = "each validation row is evaluated once"
    return reasons


def _listed(data: DataSpec) -> list[DataSource]:
    given = data.validation
    return [] if given is None else given if isinstance(given, list) else [given]


def _training(recipe: Recipe, names: Names, rows: KnownRows | None) -> Reasons:
    training, task = recipe.training, names.tasks[recipe.task]
    problem = recipe.model.problem_type or (rows.problem if rows is not None else None)
    smooths = problem in (None, "single_label", "token")
    ordered = training.train_sampling_strategy != "group_by_length"  # the default, which a run's own recipe spells out
    streamed = ordered and recipe.data is not None and recipe.data.streaming
    return {
        "training.num_train_epochs": "training.max_steps overrides it" if training.max_steps else None,
        "training.train_sampling_strategy": "a stream is read in an order of its own" if streamed else None,
        "training.save_total_limit": "training.save_strategy is no" if training.save_strategy == "no" else None,
        "training.head_learning_rate": None if training.train_head else "training.train_head is false",
        "training.label_smoothing_factor": None if smooths else f"the labels are {problem}",
        "training.max_new_tokens": None if task.generates else f"{recipe.task} generates no text",
        **{f"training.{key}": _optimizer_ignores(training, key) for key in _ADAM},
        **{f"training.{key}": evaluates(recipe, rows) for key in _OF_EVALUATIONS},
    }


def _method(recipe: Recipe, _names: Names, _rows: KnownRows | None) -> Reasons:
    return {
        dotted((*key, name)): reason
        for key, params in methods_of(recipe.method)
        for name, reason in params.idle_keys().items()
    }


_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_OF_EVALUATIONS = (
    "eval_steps",
    "eval_on_start",
    "per_device_eval_batch_size",
    "metrics",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_generate",
)


def _optimizer_ignores(training: TrainingSpec, key: str) -> str | None:
    """Return that the optimizer is given the same options whatever the key's value is, if it is so."""
    info = OPTIMIZERS.get(training.optim)
    if info is None:
        return None
    other = training.model_copy(update={key: getattr(training, key) / 2})
    return f"{training.optim} has no such option" if info.options(other) == info.options(training) else None


Rule = Callable[[Recipe, Names, KnownRows | None], Reasons]
_RULES: tuple[Rule, ...] = (_model, _data, _method, _training)
