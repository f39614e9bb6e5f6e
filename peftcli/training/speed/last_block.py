"""A classifier's last block at the position that its head reads.

Saves about a sixth of a step of a six-layer encoder, a twelfth of a twelve-layer one. Only where the live model, parts
attached, gives the same logits: its head reads the first position, its attention is torch's, and nothing behind the
attention mixes positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.cpu.first_position import FirstPosition
from peftcli.models.anatomy import Anatomy

TOLERANCE = 0.02  # of what other tokens change: bfloat16 rounds to a hundredth of that, a wrong position changes all
LENGTHS = (9, 6)
"""Tokens of the probe's rows; the second one is padded."""


class LastBlock:
    """Cuts a block to the first position within `cut`, from its attention on.

    A hook on the attention says when: one on the block would not run where checkpointing computes the block again.

    Attributes:
        taken: attention calls that were cut.
    """

    def __init__(self, attention: nn.Module) -> None:
        self._mode: FirstPosition | None = None
        self.taken = 0
        self._handle = attention.register_forward_pre_hook(self._announce, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook away."""
        self._handle.remove()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Be in a context where the block computes the first position: of one forward pass, or one recomputation."""
        before, self._mode = self._mode, FirstPosition()
        try:
            with self._mode:
                yield
        finally:
            self.taken += self._mode.taken
            self._mode = before

    def _announce(self, _attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if self._mode is not None and isinstance(hidden, Tensor) and hidden.dim() == 3:
            self._mode.expect(hidden.shape[1])


def last_block(model: Any, anatomy: Anatomy, prepare: Callable[..., dict[str, Any]]) -> LastBlock | None:
    """Return the cut of an encoder's last block if its logits stay what they are, tried on the model itself.

    Args:
        model: live, parts attached; it is left as it was, but for the cut's hook.
        prepare: `Attachment.prepare_inputs`.
    """
    blocks = anatomy.layers.get("encoder", ())
    inside = [role.module for role in anatomy.attentions if blocks and role.module.startswith(f"{blocks[-1]}.")]
    if len(anatomy.layers) != 1 or len(inside) != 1:
        return None
    if any(getattr(module, "mixes_positions", False) for module in model.get_submodule(blocks[-1]).modules()):
        return None
    last = LastBlock(model.get_submodule(inside[0]))
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


def _agrees(model: Any, last: LastBlock, prepare: Callable[..., dict[str, Any]]) -> bool:
    """Whether two rows have the same logits with the block cut as without; the second is padded."""
    ids, mask = _rows(model)

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(**prepare({"input_ids": ids, "attention_mask": mask})).logits
        return found.float()

    try:
        full = logits(ids)
        change = (full - logits(ids.flip(1))).abs().max()
        with last.cut():
            cut = logits(ids)
    except (TypeError, ValueError, RuntimeError, IndexError):  # each family fails in its own way
        return False
    return last.taken == 1 and cut.shape == full.shape and bool((cut - full).abs().max() <= TOLERANCE * change)


def _rows(model: Any) -> tuple[Tensor, Tensor]:
    """Return token ids of rows of different length, and their mask."""
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
    """Fill trained parameters that start at zero, which hide what they multiply, for a while."""
    zeros = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and not bool(p.any())]
    generator = torch.Generator().manual_seed(0)
    for parameter in zeros:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    try:
        yield
    finally:
        for parameter in zeros:
            parameter.data.zero_()
