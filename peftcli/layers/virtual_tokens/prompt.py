"""Learned vectors in the input sequence (prompt tuning, Lester et al. 2021, 2104.08691).

The sequence gets virtual token ids, numbered from the size of the vocabulary, where the prompt goes. The embedding
looks up a harmless row for them, and the part at its output puts the prompt's vectors there: behind any scaling
inside the embedding (Gemma, BART), and with ids that differ from padding, so that poolers and position counters
read them right.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.site import Part, Site, output_site


class Prompt(Part):
    """The learned vectors, (length, embedding size), float32; U(-0.5, 0.5) until initialised otherwise."""

    stage = 2

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        # the paper's range; the official flax code draws U(0, 0.5)
        self.embeddings = nn.Parameter(torch.empty(length, width, dtype=torch.float32).uniform_(-0.5, 0.5))
        self.slots: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y: (batch, seq, width) with the prompt's rows where virtual ids were; x are token ids."""
        if self.slots is None:
            return y
        rows = self.embeddings.to(y.dtype)[self.slots.clamp(min=0)]
        return torch.where((self.slots >= 0).unsqueeze(-1), self.scale * rows, y)


class _VirtualIds:
    """A pre-hook of a token embedding: it tells the prompts where virtual ids are, and lets only real ones through."""

    def __init__(self, embedding: nn.Embedding, site: Site | None) -> None:
        self.size = embedding.num_embeddings
        self.row = embedding.padding_idx if embedding.padding_idx is not None else 0
        self.site = site

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids: Tensor = args[0] if args else kwargs["input"]
        for part in self.site.parts if self.site is not None else ():
            if isinstance(part, Prompt):
                part.slots = ids - self.size
        real = self.real(ids)
        return ((real, *args[1:]), kwargs) if args else (args, {**kwargs, "input": real})

    def real(self, ids: Tensor) -> Tensor:
        """Return ids with a harmless one for virtual ones, always: to ask whether there are any would wait."""
        return ids.masked_fill(ids >= self.size, self.row)


def prompt_site(embedding: nn.Embedding) -> Site:
    """Return the site at a token embedding's output; a pre-hook tells its prompts where their rows are."""
    site = output_site(embedding)
    _accept(embedding, site)
    return site


def tolerate_virtual_ids(embedding: nn.Embedding) -> None:
    """Let another embedding of the same vocabulary look up a harmless row for virtual ids.

    A sequence-to-sequence classifier feeds its input ids, shifted, to the decoder too.
    """
    _accept(embedding, None)


def tolerate_virtual_ids_within(block: nn.Module, embedding: nn.Embedding) -> None:
    """Let a block that reads token ids itself see a harmless one for virtual ids: DeepSeek V4 routes by them."""
    names = list(inspect.signature(block.forward).parameters)
    if "input_ids" not in names:
        return
    place, known = names.index("input_ids"), _VirtualIds(embedding, None)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > place and args[place] is not None:
            return (*args[:place], known.real(args[place]), *args[place + 1 :]), kwargs
        ids = kwargs.get("input_ids")
        return None if ids is None else (args, {**kwargs, "input_ids": known.real(ids)})

    block.register_forward_pre_hook(hook, with_kwargs=True)


def _accept(embedding: nn.Embedding, site: Site | None) -> None:
    if not any(isinstance(hook, _VirtualIds) for hook in embedding._forward_pre_hooks.values()):
        embedding.register_forward_pre_hook(_VirtualIds(embedding, site), with_kwargs=True)


class StandIns:
    """A pre-hook of the module that reads token ids while text is generated: it puts a prompt's virtual ids in.

    `generate` gets ids of the text in their places, because what it does to logits looks ids up (a repetition penalty,
    banned words), and some models take no embeddings there. A row is known by its ids, so that generated tokens behind
    them, copies of rows in a beam search, and single tokens behind a cache need no care.
    """

    def __init__(self) -> None:
        self._places: tuple[Tensor, Tensor] | None = None

    def expect(self, shown: Tensor, virtual: Tensor) -> None:
        """Put `virtual` in where a pass begins with `shown`, both (batch, seq), until `forget`."""
        self._places = (shown, virtual)

    def forget(self) -> None:
        """Leave the ids of every pass as they are."""
        self._places = None

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = args[0] if args else kwargs.get("input_ids")
        if self._places is None or not isinstance(ids, Tensor) or ids.dim() != 2:
            return None
        rows, length = self._places[0].shape
        if ids.shape[1] < length or ids.shape[0] % rows:
            return None
        shown, virtual = (each.repeat_interleave(ids.shape[0] // rows, dim=0) for each in self._places)
        text = ids[:, :length]
        known = (text == shown).all(dim=1, keepdim=True)
        ids = torch.cat([torch.where(known, virtual, text), ids[:, length:]], dim=1)
        return ((ids, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": ids})


@dataclass(frozen=True)
class Insertion:
    """Where every position of the longer sequence comes from.

    Args:
        source: (batch, new seq) position in the old sequence; for a virtual token the one it stands before.
        slot: (batch, new seq) index of the virtual token, -1 at real ones.
        length: virtual tokens in one prompt.
        blank: (batch, new seq) filled up at the end: no token at all.
        moved: (batch, new seq) tokens that have a prompt somewhere before them.
    """

    source: Tensor
    slot: Tensor
    length: int
    blank: Tensor
    moved: Tensor

    def take(self, old: Tensor, virtual: int | Tensor, blank: int) -> Tensor:
        """Return `old`: (batch, seq) at the new positions, with `virtual` and `blank` where it has none."""
        kept = old.gather(1, self.source)
        filled = torch.where(self.slot >= 0, torch.as_tensor(virtual, dtype=old.dtype, device=old.device), kept)
        return filled.masked_fill(self.blank, blank)

    def positions(self, old: Tensor) -> Tensor:
        """Return position ids: those of tokens behind a prompt move up by its length."""
        at = old.expand(self.source.shape[0], -1).gather(1, self.source)
        moved = torch.where(self.slot >= 0, at + self.slot, at + self.length * self.moved)
        return moved.masked_fill(self.blank, 0)

    def square_mask(self, old: Tensor, *, causal: bool) -> Tensor:
        """Return a (batch, 1, seq, seq) mask, bool or float, for the new sequence.

        A virtual token stands for the token behind it; in a causal model it must not see that token or those after it.
        """
        batch = torch.arange(old.shape[0], device=old.device)[:, None, None]
        rows, columns = self.source[:, :, None], self.source[:, None, :]
        mask = old.expand(self.source.shape[0], -1, -1, -1)[batch, 0, rows, columns]
        hidden: float | bool = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        outside = self.blank[:, :, None] != self.blank[:, None, :]
        if causal:
            outside = outside | ~torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
        return mask.masked_fill(outside, hidden)[:, None]


def insert_once(start: Tensor, seq: int, length: int) -> Insertion:
    """Return the insertion of one prompt per row before position `start`: (batch,), of `seq`."""
    new = torch.arange(seq + length, device=start.device)[None].expand(start.shape[0], -1)
    begin = start[:, None]
    slot = torch.where((new >= begin) & (new < begin + length), new - begin, -1)
    behind = new >= begin + length
    source = torch.where(slot >= 0, begin.clamp(max=seq - 1), new - length * behind)
    return Insertion(source, slot, length, torch.zeros_like(behind), behind)


def insert_at(starts: Tensor, length: int) -> Insertion:
    """Return the insertion of a prompt before every True of `starts`: (batch, seq); short rows are filled up."""
    counts = starts.sum(1)
    total = starts.shape[1] + length * int(counts.max())
    source = torch.zeros(starts.shape[0], total, dtype=torch.long, device=starts.device)
    slot, blank = torch.full_like(source, -1), torch.ones_like(source, dtype=torch.bool)
    for row in range(starts.shape[0]):
        # a start takes length + 1 new positions: the prompt, then the token itself
        repeats = 1 + length * starts[row].long()
        old = torch.repeat_interleave(torch.arange(starts.shape[1], device=starts.device), repeats)
        within = torch.arange(len(old), device=starts.device) - (repeats.cumsum(0) - repeats)[old]
        size = len(old)
        source[row, :size] = old
        slot[row, :size] = torch.where(starts[row][old] & (within < length), within, -1)
        blank[row, :size] = False
    behind = (starts.long().cumsum(1) > 0).gather(1, source)
    return Insertion(source, slot, length, blank, behind)


def document_starts(ids: Tensor, positions: Tensor, pad: int | None) -> Tensor:
    """Return where documents begin in packed rows, (batch, seq) bool; padding with position 0 is no document.

    Args:
        ids: (batch, seq).
        positions: (batch or 1, seq), restarting at 0.
        pad: id of padding.
    """
    positions = positions.expand_as(ids)
    starts = positions == 0
    if pad is not None:
        goes_on = torch.zeros_like(starts)
        goes_on[:, :-1] = positions[:, 1:] == 1
        starts = starts & (goes_on | (ids != pad))
    return starts
