"""What the loss of each row takes from all rows of a step: computed once, before the first micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from peftcli.data.rows.referenced_rows import others_of
from peftcli.distributed.sharding import drop_gathered
from peftcli.tasks.task import Batch
from peftcli.training.session import Session


def tell_of_all(session: Session, batches: list[Batch], count: Tensor | float) -> None:
    """Give the micro-batches of a step the mean of `Task.look_ahead` over all of its rows, on all processes.

    Nothing where the rows have no mismatched sequences. It is computed as the reference was: without gradients and
    dropout, in training's dtype, drawing no random numbers.

    Args:
        count: rows of the step over all processes.
    """
    if others_of(session.batches.rows) is None:
        return
    model, world = session.model, session.world
    total = torch.zeros((), device=world.device)
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            session.precision.training(world.device),
        ):
            for batch in (ahead for first in batches[:1] for ahead in first.ahead):
                found = session.task.look_ahead(model, batch.to(world.device)).float()
                total += found * 0.0 if batch.idle else found
    finally:
        model.train(training)
        drop_gathered(model)
    mean = (total if world.size == 1 else world.sum(total)) / count
    for batch in batches:
        batch.of_all = mean
