"""The rows of a recipe, prepared for its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from peftcli.assembly.positions_left import positions_left
from peftcli.data.loss_rows import as_loss_reads
from peftcli.data.prepare import prepare
from peftcli.data.prepared_data import PreparedData
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.recipe.load_recipe import LoadedRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_data(
    loaded: LoadedRecipe,
    tokenizer: PreTrainedTokenizerBase,
    anatomy: Anatomy,
    world: World,
    progress: Callable[[int], None] | None = None,
) -> PreparedData:
    """Prepare the rows once: the main process first, the others read what it cached.

    Args:
        anatomy: says how long a row may be.
        progress: called with the number of rows encoded so far.

    Raises:
        UserError: the recipe has no data block, or anything is wrong with the data.
    """
    recipe, spec = loaded.recipe, loaded.recipe.data
    if spec is None:
        raise UserError(loaded.problem("data", "the recipe has no data block", "add data: {path: FILE}"))
    training = recipe.training
    if training.eval_strategy == "no":  # no rows are kept from training; those of data.validation are still there
        spec = spec.model_copy(update={"val_set_size": 0.0})
    step_rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * world.size
    stream_rows = step_rows * training.max_steps if spec.streaming and training.max_steps else None
    longest = positions_left(anatomy, recipe.method)
    data = world.main_first(
        lambda: prepare(
            spec,
            recipe.task,
            tokenizer,
            seed=recipe.seed,
            where=loaded,
            model_max_positions=longest,
            target_positions=anatomy.max_target_positions,
            problem_type=recipe.model.problem_type,
            stream_rows=stream_rows,
            progress=progress,
        )
    )
    return as_loss_reads(data, recipe, min(spec.max_length, longest or spec.max_length))
