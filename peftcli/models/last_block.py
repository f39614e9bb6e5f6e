"""A classifier's last block at the position that its head reads.

This saves about a sixth of a step of a six-layer encoder, and a twelfth of a twelve-layer one. Attention is computed
for one query instead of all, and what follows (output projection, feed-forward part, norms, dropout) for one position
of each row. It is done only if the model with its parts then gives the same logits: if its head reads the first
position, its attention is torch's, and no part after the attention mixes positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.distributed.memory_errors import says_nothing_of_the_model
from peftcli.distributed.sharding import drop_gathered
from peftcli.distributed.whole_tensors import put
from peftcli.layers.cpu.first_query import FirstQuery
from peftcli.models.anatomy import Anatomy

TOLERANCE = 0.02  # of the change that other tokens make; rounding to bfloat16 changes a hundredth of that
LENGTHS = (9, 6)
"""Tokens of the two rows that are tried; the second one is padded."""


class LastBlock:
    """Computes a block for the first position only, from its attention on, within `cut`.

    Hooks on the modules of the block, which the anatomy names, keep the first position. A residual sum of one position
    and all positions broadcasts to all, and the hook on the module that reads the sum keeps its first position.

    Args:
        model: the live model, parts attached.
        attention: path of the block's attention.
        inputs: paths of the modules after the attention whose input is cut to (batch, 1, width).
        outputs: paths of the modules whose output is cut: the output projection, because a part parallel to it may
            have computed all positions, and the block itself.

    Attributes:
        taken: number of attention calls that were cut.
    """

    def __init__(self, model: nn.Module, attention: str, inputs: list[str], outputs: list[str]) -> None:
        self._mode: FirstQuery | None = None
        self.taken = 0
        before = model.get_submodule(attention).register_forward_pre_hook(self._expect)
        after = model.get_submodule(attention).register_forward_hook(self._expect_no_more)
        self._handles = [before, after]
        for path in inputs:  # before other hooks, so that parts get the first position, too
            self._handles.append(model.get_submodule(path).register_forward_pre_hook(self._cut_input, prepend=True))
        for path in outputs:
            self._handles.append(model.get_submodule(path).register_forward_hook(self._cut_output))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Return a context for one forward pass, or for its recomputation, in which the block is cut."""
        before, self._mode = self._mode, FirstQuery()
        try:
            with self._mode:
                yield
        finally:
            self.taken += self._mode.taken
            self._mode = before

    def _expect(self, _attention: nn.Module, _args: Any) -> None:
        if self._mode is not None:
            self._mode.expected = True

    def _expect_no_more(self, _attention: nn.Module, _args: Any, _output: Any) -> None:
        if self._mode is not None:
            self._mode.expected = False

    def _cut_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._mode is None else (_first_position(args[0]), *args[1:])

    def _cut_output(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self._mode is None:
            return output
        if isinstance(output, tuple):
            return (_first_position(output[0]), *output[1:])
        return _first_position(output)


def _first_position(x: Tensor) -> Tensor:
    """Return the first position of x: (batch, positions, width), (batch, 1, width); x itself where it has only one.

    Another view would be another autograd node between x and its uses, and gradients would be summed in another order.
    """
    return x if x.shape[1] == 1 else x.narrow(1, 0, 1).contiguous()


def last_block(model: Any, anatomy: Anatomy, prepare: Callable[..., dict[str, Any]]) -> LastBlock | None:
    """Return the cut of an encoder's last block if the logits stay the same, which is tried on the model.

    Args:
        model: with its parts attached; only the hooks of the cut are added to it.
        prepare: `Attachment.prepare_inputs`.
    """
    last = hooked_last_block(model, anatomy)
    if last is None:
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _without_zeros(model):
            same = _agrees(model, last, prepare)
    finally:
        model.train(was_training)
    if not same:
        last.remove()
    return last if same else None


def hooked_last_block(model: nn.Module, anatomy: Anatomy) -> LastBlock | None:
    """Return the last block with its hooks, untried; None if the anatomy lacks a module or a part mixes positions."""
    blocks = anatomy.layers.get("encoder", ())
    if len(anatomy.layers) != 1 or not blocks:
        return None
    block, layer = blocks[-1], len(blocks) - 1
    attentions = [role.module for role in anatomy.attentions if role.layer == layer]
    linears = {role.role: role.module for role in anatomy.linears if role.layer == layer}
    if len(attentions) != 1 or "attn.o" not in linears:
        return None
    if any(getattr(module, "mixes_positions", False) for module in model.get_submodule(block).modules()):
        return None
    branches = {role.kind: role for role in anatomy.blocks if role.layer == layer}
    behind = [
        linears["attn.o"],
        branches["attn"].post_norm if "attn" in branches else None,
        branches["ffn"].pre_norm if "ffn" in branches else None,
        linears.get("ffn.gate"),
        linears.get("ffn.up"),
    ]
    inputs = list(dict.fromkeys(path for path in behind if path is not None))
    return LastBlock(model, attentions[0], inputs, [linears["attn.o"], block])


def _agrees(model: Any, last: LastBlock, prepare: Callable[..., dict[str, Any]]) -> bool:
    """Tell whether two rows, one of them padded, have the same logits with and without the cut."""
    ids, mask = _rows(model)

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(**prepare({"input_ids": ids, "attention_mask": mask})).logits
        return found.float()

    try:
        full = logits(ids)
        change = (full - logits(ids.flip(1))).abs().max()
        with last.cut():
            cut = logits(ids)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # models fail in different ways
        if says_nothing_of_the_model(error):
            raise
        return False
    return last.taken == 1 and cut.shape == full.shape and bool((cut - full).abs().max() <= TOLERANCE * change)


def _rows(model: Any) -> tuple[Tensor, Tensor]:
    """Return token ids of rows of different lengths, and their mask."""
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(config.vocab_size), (len(LENGTHS), max(LENGTHS)), generator=generator)
    padding = getattr(config, "pad_token_id", None)
    if padding is not None:
        ids[ids == padding] = (padding + 1) % int(config.vocab_size)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = ids.masked_fill(mask == 0, padding or 0)
    return ids.to(device), mask.to(device)


@contextmanager
def _without_zeros(model: nn.Module) -> Iterator[None]:
    """Fill trained parameters that are all zero within the context, because zeros hide what they are multiplied by."""
    drop_gathered(model)  # shares are changed, and gathered again by each pass
    zeros = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and not bool(p.any())]
    generator = torch.Generator().manual_seed(0)
    for parameter in zeros:
        put(parameter.data, torch.randn(parameter.shape, generator=generator) * 0.1)
    try:
        yield
    finally:
        for parameter in zeros:
            parameter.data.zero_()
        drop_gathered(model)
