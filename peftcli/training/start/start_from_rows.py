"""What a new run's method takes from its training rows before the first step; a run that goes on has it already."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from peftcli.assembly.attach_method import Attached
from peftcli.assembly.equal_start import start_equal
from peftcli.assembly.precision import Precision
from peftcli.data.rows.padding import collate
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import Recipe
from peftcli.record.train_state import TrainState
from peftcli.tasks.training_rows import TrainingRows
from peftcli.training.step_batches import StepBatches
from peftcli.training.watch.reporting import Reporter


def start_from_rows(
    recipe: Recipe,
    attached: Attached,
    batches: StepBatches,
    precision: Precision,
    state: TrainState,
    reporter: Reporter,
) -> None:
    """Let the method of a new run start from the training rows, with its parts switched off; tell what it did.

    What it decides of its hyper-parameters (ranks) is noted in `state`.

    Every process reads the same rows, and then takes the main one's values, since devices can round differently. A run
    that goes on, and one that starts from an earlier adapter (`method.init_from`), have theirs.
    """
    if not state.step and recipe.method.init_from is None:
        _start(attached.attachment, batches, precision, reporter)
    now = attached.attachment.params_now(attached.params)
    if now != recipe.method:
        state.method = now.model_dump(mode="json")


def _start(attachment: Attachment, batches: StepBatches, precision: Precision, reporter: Reporter) -> None:
    model, device, collator = attachment.model, batches.world.device, batches.collator

    def made() -> Iterator[dict[str, Tensor]]:
        for rows in batches.of_all_processes():
            sequences, kind = collator.sequences(rows), collator.task.info.reads
            tensors = collate(sequences, collator.tokenizer, kind, packing_route=collator.packing_route)
            yield {name: tensor.to(device) for name, tensor in tensors.items()}

    rows, training = TrainingRows(made, agreed=batches.world.broadcast), model.training
    attachment.enable(False)
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), precision.inference(device):
            attachment.start_from_rows(model, rows)
    finally:
        model.train(training)
        attachment.enable()
    if rows.notes:
        start_equal(model, batches.world)
    for note in rows.notes:
        reporter.note(note)
