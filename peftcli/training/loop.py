"""The training loop. `train_steps` is one screen: the phases of a step, in order. Nothing else happens in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from peftcli.data.rows.referenced_rows import others_of
from peftcli.distributed.gradients import any_gradient, clip_gradients
from peftcli.distributed.processes import World
from peftcli.distributed.sharding import drop_gathered
from peftcli.distributed.stop_vote import StopVote
from peftcli.stop_signals import StopRequest
from peftcli.tasks.task import Batch
from peftcli.training.milestones import Milestones
from peftcli.training.optim.learning_rate import set_learning_rates
from peftcli.training.session import Session
from peftcli.training.watch.first_gradients import dropped_blocks_note, unreached_note

Upcoming = Iterator[list[Batch]]
"""This process's micro-batches of each step that is left."""
LEAST_COUNT = 1e-9
"""What the loss of a step without a label is divided by: 0 stays 0."""


def train_steps(
    session: Session, milestones: Milestones, upcoming: Upcoming, stop: StopRequest, after_step: Callable[[], None]
) -> bool:
    """Take every remaining step; return whether the run is done (False: asked to stop, state saved)."""
    state, plan, spec = session.state, session.plan, session.recipe.training
    world, accelerator = session.world, session.accelerator
    parameters = list(session.attachment.trainable_parameters().values())
    session.model.train()
    meter, vote = milestones.meter, StopVote(world, stop)
    for batches in upcoming:
        meter.start_step()

        # count: what the loss of the whole step is divided by, over all micro-batches and processes
        count = _total_count(batches, world)

        # what the loss of each row takes from all rows of the step
        micro_batches = _with_mean_of_all(session, batches, count)

        # forward, backward
        with session.precision.float32_products():
            for batch in micro_batches:
                meter.add(_pass(session, batch, count), batch)
        _note_unreached(session)

        # the method's own loss, once a step
        extra = session.attachment.extra_loss() if world.is_main else None
        if extra is not None:
            accelerator.backward(extra)

        # sum over processes, unscale, clip
        world.sum_gradients(parameters, vote.cast())
        norm = clip_gradients(accelerator, parameters, spec.max_grad_norm or math.inf)
        meter.see(norm)

        # step; a step whose float16 gradients overflowed is not taken, and the method then sees none
        set_learning_rates(session.optimizer, session.rate_factor(state.step))
        if any_gradient(parameters):
            session.optimizer.step()
        state.step += 1
        if session.precision.scaled and not norm.isfinite():  # a fused optimizer skips on the device: ask the norm
            session.optimizer.zero_grad()
        session.attachment.after_optimizer_step(state.step, plan.total_steps)

        # clear
        session.optimizer.zero_grad()

        # record
        meter.finish_step(norm)
        after_step()

        # evaluate, save, stop
        milestones.evaluate_if_due(stop)
        asked = vote.asked() or state.evaluation_due
        milestones.save_if_due(at_once=asked)
        if not state.evaluation_due and (state.done or state.step >= plan.total_steps):
            break
        if asked:
            return False
    return True


def _pass(session: Session, batch: Batch, count: Tensor | float) -> Tensor:
    """Compute the gradients of one micro-batch, and return its loss without the graph.

    Nothing of the graph may outlive the pass: its nodes would lie between the blocks that the activations gave back,
    and the next pass's would not fit there (on a CPU the run then holds half as much again).
    """
    with session.computing(batch):
        terms = session.task.loss(session.model, batch.to(session.world.device))
    loss_sum = terms.loss_sum * 0.0 if batch.idle else terms.loss_sum
    if loss_sum.requires_grad:  # not where the model dropped all blocks that reach what is trained
        with session.computing.fast_paths.backward():
            session.accelerator.backward(loss_sum / count)
    return loss_sum.detach()


def _total_count(batches: list[Batch], world: World) -> Tensor | float:
    """Return the step's count over all processes, not 0; one process keeps a number, and its device need not wait."""
    own = max(sum((batch.count for batch in batches), 0.0), LEAST_COUNT / world.size)
    return own if world.size == 1 else world.sum(torch.full((), own, device=world.device))


def _with_mean_of_all(session: Session, batches: list[Batch], count: Tensor | float) -> list[Batch]:
    """Return the micro-batches of a step with the mean of `Task.look_ahead` over all of its rows, on all processes.

    They are as they were where the rows have no mismatched sequences. The mean is computed as the reference was:
    without gradients and dropout, in training's dtype, drawing no random numbers.

    Args:
        count: rows of the step over all processes.
    """
    if others_of(session.batches.rows) is None:
        return batches
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
    return [replace(batch, of_all=mean) for batch in batches]


def _note_unreached(session: Session) -> None:
    """After the first step's backward passes, tell which trained tensors have no gradient.

    Of a model that drops whole blocks in training it is told that it does so: one step says nothing of the next.

    Raises:
        UserError: none has one.
    """
    if session.state.step == 0:
        note = dropped_blocks_note(session.model.config)
        note = note or unreached_note(session.attachment.trainable_parameters(), session.world)
        if note is not None:
            session.reporter.note(note)
