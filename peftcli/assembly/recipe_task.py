"""The task of a recipe, with what it needs to know of the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from peftcli.data.rows.row_set import Row
from peftcli.data.store.labels import LabelSpec
from peftcli.recipe.schema import Recipe
from peftcli.tasks.task import Task, TaskSettings
from peftcli.tasks.task_table import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_task(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: LabelSpec | None,
    *,
    train: Iterable[Row] | None = None,
    stop_ids: tuple[int, ...] = (),
    positions: int | None = None,
    target_positions: int | None = None,
) -> Task:
    """Return the recipe's task.

    Args:
        labels: of a classification task.
        train: the rows in which balanced class weights are counted.
        stop_ids: tokens that end a generated text, besides the model's own.
        positions: what a row, with the text generated behind it, may take of the model's learned positions.
        target_positions: those of the decoder, where it has other ones than the encoder.
    """
    train_labels = None
    if recipe.training.class_weights == "balanced" and train is not None:
        train_labels = [int(label) for row in train for label in np.asarray(row.labels).ravel() if label >= 0]
    settings = TaskSettings(
        tokenizer, labels, recipe.training, train_labels, stop_ids, positions, target_positions=target_positions
    )
    return TASKS[recipe.task](settings)
