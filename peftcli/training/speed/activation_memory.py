"""What a forward pass keeps for the backward pass, in bytes.

Measured on the model itself, parts attached: a row of a few tokens is tried at three lengths, and the parabola through
them gives any other length (attention that keeps its probabilities grows with the square). So no family and no method
needs a formula of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.data.rows.collation import Collator
from peftcli.data.rows.row_set import Row
from peftcli.distributed.whole_tensors import held_parts
from peftcli.models.few_blocks import FirstBlocks
from peftcli.tasks.task import Batch, Task

LONGEST_PROBE = 32
"""Tokens of the longest row that is tried."""


@dataclass(frozen=True)
class ActivationCost:
    """Bytes that a forward pass keeps: fixed + rows * (linear * tokens + quadratic * tokens^2)."""

    fixed: float
    linear: float
    quadratic: float

    def of(self, rows: float, length: int) -> float:
        """Return the bytes for `rows` rows of `length` tokens."""
        return self.fixed + rows * (self.linear * length + self.quadratic * length**2)


def activation_cost(
    model: nn.Module,
    task: Task,
    collator: Collator,
    row: Row,
    computing: Callable[[Batch], AbstractContextManager[object]],
    blocks: FirstBlocks,
) -> ActivationCost:
    """Return what one row costs, from shortened copies of it.

    Of blocks that are alike two are computed; the second one keeps what each further one would.

    Args:
        model: live, parts attached, on its device; it is left in the mode it was in.
        row: as long as any.
        computing: the context of a batch's training forward pass.
        blocks: of the model, as they are now.
    """
    longest = min(LONGEST_PROBE, len(row.input_ids))
    lengths = sorted({max(1, longest // 4), max(1, longest // 2), longest})
    was_training = model.training

    def kept_at_each_length(stands_for: Mapping[str, int]) -> list[int]:
        kept = []
        for length in lengths:
            batch = collator.batch([_shortened(row, length, task)])
            with torch.enable_grad(), computing(batch):
                kept.append(_kept_bytes(model, task, batch, stands_for))
        return kept

    model.train()
    try:
        kept = blocks.find(kept_at_each_length, times=2)
    finally:
        model.train(was_training)
    degree = len(lengths) - 1
    found = [max(0.0, float(x)) for x in np.polyfit(lengths, kept, degree)]
    quadratic, linear, fixed = [0.0] * (2 - degree) + found  # one or two lengths determine no parabola
    return ActivationCost(fixed, linear, quadratic)


def _kept_bytes(model: nn.Module, task: Task, batch: Batch, stands_for: Mapping[str, int]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, the model's own left out.

    A divided weight that was gathered for the pass is a parameter, too; it is gathered again for the backward pass.

    Args:
        stands_for: for how many blocks a block stands, by path.
    """
    every = chain(model.parameters(), model.buffers())
    own = {_storage(part) for tensor in every for part in held_parts(tensor)}
    kept: dict[int, int] = {}
    times = [1]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            parts = {_storage(part): part.untyped_storage().nbytes() for part in held_parts(tensor)}
            for address in parts.keys() - kept.keys() - own:
                kept[address] = parts[address] * times[-1]
        return tensor.detach()  # a node that kept its own output would keep itself, and the whole graph, for good

    device = next(model.parameters()).device
    with _told_of_blocks(model, stands_for, times), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        terms = task.loss(model, batch.to(device))
    total = sum(kept.values())
    del terms  # kept until here, so that no address was used twice
    return total


@contextmanager
def _told_of_blocks(model: nn.Module, stands_for: Mapping[str, int], times: list[int]) -> Iterator[None]:
    """Append to `times` for how many blocks a block stands, while it runs."""

    def begin(count: int, _block: nn.Module, _args: Any) -> None:
        times.append(count)

    def end(_block: nn.Module, _args: Any, _output: Any) -> None:
        times.pop()

    hooks = []
    for path, count in stands_for.items():
        block = model.get_submodule(path)
        hooks += [
            block.register_forward_pre_hook(partial(begin, count), prepend=True),
            block.register_forward_hook(end),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _shortened(row: Row, length: int, task: Task) -> Row:
    """Return the last tokens of a row, where those to learn are; of a preference those of both sequences."""
    if row.token_type_ids is not None and task.info.rows == "preferences":
        sides = np.unique(row.token_type_ids)
        last = max(2, length // len(sides))  # the first one of a sequence is never learnt
        places = [np.flatnonzero(row.token_type_ids == side)[-last:] for side in sides]
        kept = np.concatenate(places)
        types, reference = row.token_type_ids[kept], np.zeros(len(places), dtype=np.float32)
        own = replace(row, input_ids=row.input_ids[kept], token_type_ids=types, reference=reference)
        return replace(own, labels=row.labels[kept] if isinstance(row.labels, np.ndarray) else None)
    labels: Any = row.labels
    if task.info.rows != "labelled" and labels is not None:  # a target of its own length is cut by the same share
        share = length / len(row.input_ids)
        labels = labels[-max(1, round(len(labels) * share)) :]
    return replace(
        row,
        input_ids=row.input_ids[-length:],
        labels=labels,
        token_type_ids=None if row.token_type_ids is None else row.token_type_ids[-length:],
        position_ids=None if row.position_ids is None else np.arange(length, dtype=np.int32),
        documents=None if row.documents is None else np.zeros(length, dtype=np.int32),
    )
