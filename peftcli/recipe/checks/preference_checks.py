"""Preference tuning: hyper-parameters of another loss or another task, and what its pairs leave no room for."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.recipe.preference_losses import DEFAULT_LOSS, HYPERPARAMETERS, PREFERENCE_LOSSES, PreferenceLossInfo
from peftcli.recipe.pydantic_messages import Finding
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names

_OWN = ("loss_type", *HYPERPARAMETERS, "reference")


def check_preference(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield what does not fit the recipe's preference loss; of another task, the keys of such losses."""
    training = recipe.training
    if names.tasks[recipe.task].rows != "preferences":
        able = " and ".join(name for name, info in names.tasks.items() if info.rows == "preferences")
        for key in _OWN:
            if getattr(training, key) is not None:
                reason = f"training.{key} is for the task {able}; the task is {recipe.task}"
                instead = "write label_smoothing_factor" if key == "label_smoothing" else "leave it out"
                yield Finding(("training", key), reason, f"{instead}, or write task: {able}")
        return
    name = training.loss_type or DEFAULT_LOSS
    loss = PREFERENCE_LOSSES.get(name)
    if loss is None:  # said already
        return
    for key in HYPERPARAMETERS:
        value = getattr(training, key)
        if value is not None and key not in loss.defaults:
            having = ", ".join(other for other, info in PREFERENCE_LOSSES.items() if key in info.defaults)
            own = ", ".join(loss.defaults)
            yield Finding(
                ("training", key), f"the loss {name} has no {key}", f"it has {own}; {key} belongs to {having}"
            )
        if value is None and key in loss.defaults and loss.defaults[key] is None:
            yield Finding(
                ("training", "loss_type"),
                f"the loss {name} needs training.{key}",
                f"`{key}: 0.1` says that a tenth of the preferences is the wrong way round",
            )
    if name == "robust" and training.label_smoothing == 0:
        reason = "training.label_smoothing = 0; the loss robust needs the share of wrong preferences, above 0"
        yield Finding(("training", "label_smoothing"), reason, "write loss_type: sigmoid for none")
    if training.label_smoothing_factor:
        reason = f"training.label_smoothing_factor is for the next-token loss; the task is {recipe.task}"
        yield Finding(("training", "label_smoothing_factor"), reason, "losses of pairs have label_smoothing")
    if training.reference is not None and not loss.reference:
        comparing = ", ".join(other for other, info in PREFERENCE_LOSSES.items() if info.reference)
        reason = f"training.reference = {training.reference}; the loss {name} compares with no reference"
        yield Finding(("training", "reference"), reason, f"leave it out, or choose a loss that does: {comparing}")
    yield from _rows(recipe, name, loss)


def _rows(recipe: Recipe, name: str, loss: PreferenceLossInfo) -> Iterator[Finding]:
    data = recipe.data
    if data is None:
        return
    if data.train_on == "all":
        reason = "data.train_on = all; a preference compares the answers, and both have the same prompt"
        yield Finding(("data", "train_on"), reason, "leave it out")
    if data.streaming and loss.unpaired:
        reason = f"data.streaming reads on, and the loss {name} puts answers to other prompts behind each prompt"
        yield Finding(("data", "streaming"), reason, "leave it out")
    elif data.streaming and loss.reference and recipe.training.reference != "live":
        reason = "data.streaming leaves no rows to compute the reference's log-probabilities on before the first step"
        yield Finding(
            ("data", "streaming"),
            reason,
            "leave it out, write training.reference: live, or choose a loss without one: orpo, simpo, cpo",
        )
