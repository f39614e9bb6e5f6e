"""How the rows of a merged model's training were read: a file beside the model, so that it reads others as its run did.

peftcli_rows.json   {"task", "trained_format", "max_new_tokens", "format", "columns", "template", ...}

The task is there because a model of preferences is saved as any causal model is; its loss says how pairs are evaluated.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peftcli.data.chat.named_templates import PLAIN
from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.method_params import Positive
from peftcli.recipe.preference_losses import HYPERPARAMETERS
from peftcli.recipe.schema import DataSpec, LossType, Recipe
from peftcli.tasks.task_table import task_info
from peftcli.typed_record import read_record

READING = "peftcli_rows.json"


@dataclass(frozen=True)
class RowReading:
    """What of a recipe says how a file is read, and how long a generated text becomes.

    Args:
        trained_format: format of the training rows; None where that is not known.
        format, columns, template, max_length, chat_template_kwargs: as in `DataSpec`. The chat template itself is the
            tokenizer's.
        plain_text: whether rows are plain text although the tokenizer may have a chat template.
        loss_type: of preference tuning; None is the default.
        loss_settings: its hyper-parameters, as far as the recipe has them.
    """

    task: str
    trained_format: str | None
    max_new_tokens: Positive
    format: str
    columns: dict[str, str]
    template: str | None
    max_length: Positive
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    loss_type: LossType | None = None
    loss_settings: dict[str, float] = field(default_factory=dict)
    plain_text: bool = False


def write_reading(directory: Path, recipe: Recipe, trained_format: str | None) -> None:
    """Write how a run reads rows beside a model that it became; nothing for a run that knows of none."""
    data = recipe.data
    if data is None:
        return
    reading = RowReading(
        recipe.task,
        trained_format,
        recipe.training.max_new_tokens,
        data.format,
        dict(data.columns),
        data.template,
        data.max_length,
        dict(data.chat_template_kwargs),
        recipe.training.loss_type,
        {key: value for key in HYPERPARAMETERS if (value := getattr(recipe.training, key)) is not None},
        data.chat_template == PLAIN,
    )
    (directory / READING).write_text(json.dumps(asdict(reading), indent=2) + "\n", encoding="utf-8")


def with_reading(loaded: LoadedRecipe, directory: Path) -> tuple[LoadedRecipe, str | None]:
    """Return a complete model's recipe with what its directory says of rows, and the format of its training rows.

    Raises:
        UserError: the file is damaged, or names a row format that is not installed here.
    """
    file = directory / READING
    if not file.exists():
        return loaded, None
    remedy = "merge again, or remove the file: rows are then read by their columns alone"
    found = read_record(RowReading, file, suggestion=remedy)
    recipe = loaded.recipe
    if found.task not in NAMES.tasks or task_info(found.task).auto_class != task_info(recipe.task).auto_class:
        return loaded, None
    for name in (found.format, found.trained_format):
        if name not in (None, "auto") and name not in NAMES.formats:
            reason = f"names the row format {name!r}, which no installed package has"
            raise UserError(Problem(reason, file=str(file), suggestion=f"install the package that adds it, {remedy}"))
    data = DataSpec(
        format=found.format,
        columns=found.columns,
        template=found.template,
        max_length=found.max_length,
        chat_template=PLAIN if found.plain_text else None,
        chat_template_kwargs=found.chat_template_kwargs,
    )
    of_loss = {key: value for key, value in found.loss_settings.items() if key in HYPERPARAMETERS}
    own = {"max_new_tokens": found.max_new_tokens, "loss_type": found.loss_type, **of_loss}
    changes = {"task": found.task, "data": data, "training": recipe.training.model_copy(update=own)}
    return replace(loaded, recipe=recipe.model_copy(update=changes)), found.trained_format
