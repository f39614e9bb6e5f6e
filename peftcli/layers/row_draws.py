"""Random draws of a training pass by (seed, step, row), whatever rows are computed together, where, and how padded.

Within `drawing(rows)` every draw takes the next number of the pass, and an element's bits are a hash of the row's key,
that number and the element's indices. A row is found by the shape: dimension 0 has a row each, or flattened tokens, or
(joined rows) dimension 1 has the tokens of one row after the other. Other shapes, such as a table that all rows share,
are drawn by (seed, step). Recomputation takes the same numbers again (`same_again`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peftcli.layers.hashed_bits import Key, hashed_bits, key_of, keys_tensor, with_index, with_indices

_TABLE, _FLAT, _ROWS, _JOINED = range(4)
"""How a tensor's dimensions belong to rows."""


class DrawnRows:
    """The rows of one micro-batch, as draws know them.

    Args:
        shared: key of what all rows of a step share.
        keys: of each row.
        lengths: tokens of each row, for each sequence that the model reads (the input, a decoder's input).
        widths: tokens of each such sequence in the padded tensors.
        joined: whether the rows stand behind each other in one, without padding.
    """

    def __init__(
        self,
        shared: Key,
        keys: Sequence[Key],
        lengths: Sequence[Sequence[int]] = (),
        widths: Sequence[int] = (),
        joined: bool = False,
    ) -> None:
        self.shared, self.keys, self.joined = shared, list(keys), joined
        self.lengths, self.widths = lengths, widths
        self._known: dict[tuple[object, ...], Tensor] = {}

    @classmethod
    def of_step(
        cls,
        seed: int,
        step: int,
        numbers: Sequence[int],
        lengths: Sequence[Sequence[int]],
        widths: Sequence[int],
        joined: bool = False,
    ) -> DrawnRows:
        """Return the rows with these numbers in a step."""
        keys = [key_of(seed, step, number) for number in numbers]
        return cls(key_of(seed, step), keys, lengths, widths, joined)

    def alone(self, row: int) -> DrawnRows:
        """Return one of the rows, as if it were the only one."""
        return DrawnRows(self.shared, [self.keys[row]])

    def kind(self, shape: Sequence[int]) -> int:
        """Return how a tensor of this shape belongs to the rows."""
        if len(shape) < 2 or not self.keys:
            return _TABLE
        if self.joined:
            total = sum(self.lengths[0])
            if shape[0] == total and len(shape) == 2:
                return _FLAT
            return _JOINED if shape[0] == 1 and len(shape) > 2 and shape[1] == total else _TABLE
        if shape[0] == len(self.keys):
            return _ROWS
        flat = len(shape) == 2 and any(shape[0] == len(self.keys) * width for width in self.widths)
        return _FLAT if flat else _TABLE

    def position_keys(self, kind: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the keys of all positions, (2, *shape[:-1]) int32; kept, since many draws have the same shape.

        Each key depends on the row's key and on the position's indices, and not on how many positions there are.
        """
        known = (kind, *shape[:-1], device)
        if known not in self._known:
            self._known[known] = self._made(kind, shape, device)
        return self._known[known]

    def _made(self, kind: int, shape: Sequence[int], device: torch.device) -> Tensor:
        if kind == _TABLE:
            return _indexed(keys_tensor([self.shared], device).view(2), shape[:-1])
        keys = keys_tensor(self.keys, device)
        if not self.joined:
            if kind == _FLAT:
                return _indexed(keys, [shape[0] // len(self.keys)]).flatten(1)
            return _indexed(keys, shape[1:-1])
        lengths = torch.tensor(list(self.lengths[0]))
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        within = (torch.arange(len(starts)) - starts).to(device=device, dtype=torch.int32)
        row = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
        tokens = with_indices(keys[:, row], within)
        return tokens if kind == _FLAT else _indexed(tokens.unsqueeze(1), shape[2:-1])


def _indexed(keys: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return keys with a further dimension of each size."""
    for size in sizes:
        keys = with_indices(keys.unsqueeze(-1), torch.arange(size, dtype=torch.int32, device=keys.device))
    return keys


@dataclass(frozen=True)
class Draw:
    """One draw: bits that can be computed again at any time.

    Args:
        rows: whose bits they are.
        shape: of the tensor.
        kind: how its dimensions belong to rows.
        number: of the draw within its pass.
        first: index of the first element of the last dimension.
    """

    rows: DrawnRows
    shape: tuple[int, ...]
    kind: int
    number: int
    first: int = 0

    def bits(self, device: torch.device) -> Tensor:
        """Return uniformly distributed int16 numbers of the draw's shape."""
        positions = self.rows.position_keys(self.kind, self.shape, device)
        return hashed_bits(with_index(positions, self.number), self.shape[-1], self.first)


@dataclass
class _Pass:
    """How far a forward pass has come.

    Args:
        placed: draws that belong to rows so far.
        shared, others: draws for what all rows share, and those of other shapes; counted apart, since how many
            others there are can depend on the rows (experts).
        calls: of `lengths_for`.
        start: of a document within its row.
    """

    rows: DrawnRows
    placed: int = 0
    shared: int = 0
    others: int = 0
    calls: int = 0
    start: int = 0


_pass: _Pass | None = None


@contextmanager
def drawing(rows: DrawnRows | None) -> Iterator[None]:
    """Draw for these rows in the forward pass inside; None leaves it to torch's random state."""
    with _set(None if rows is None else _Pass(rows)):
        yield


def same_again() -> AbstractContextManager[None]:
    """Return a context, to be entered once, in which the draws that follow now are made once more."""
    return _set(None if _pass is None else replace(_pass))


@contextmanager
def _set(new: _Pass | None) -> Iterator[None]:
    global _pass
    before, _pass = _pass, new
    try:
        yield
    finally:
        _pass = before


def is_drawing() -> bool:
    """Whether draws belong to rows at the moment."""
    return _pass is not None


def draw(shape: Sequence[int], *, shared: bool = False) -> Draw:
    """Return the next draw for a tensor of this shape.

    Args:
        shared: the tensor is one for all rows of a step, whatever its shape; all of them get the same bits.
    """
    sizes = tuple(shape)
    if _pass is None:
        seed = int(torch.randint(2**62, ()).item())  # the CPU's: no wait for a device
        return Draw(DrawnRows(key_of(seed), []), sizes, _TABLE, 0)
    if shared:
        _pass.shared += 1
        return Draw(_pass.rows, sizes, _TABLE, _pass.shared)
    kind = _pass.rows.kind(sizes)
    if kind == _TABLE:
        _pass.others += 1
        return Draw(_pass.rows, sizes, kind, -_pass.others)
    _pass.placed += 1
    return Draw(_pass.rows, sizes, kind, _pass.placed)


def draw_attention(shape: Sequence[int]) -> Draw:
    """Return the next draw for attention probabilities, (rows, ..., queries, keys).

    Those of a document are the ones that the row would have at the document's place.
    """
    found = draw(shape)
    if _pass is None or not _pass.start:
        return found
    start = _pass.start
    whole = (*shape[:-2], start + shape[-2], start + shape[-1])
    return _Within(found.rows, whole, found.kind, found.number, start)


@dataclass(frozen=True)
class _Within(Draw):
    """The draw of a square part of a larger one: its last queries and keys, from `first` on."""

    def bits(self, device: torch.device) -> Tensor:
        positions = self.rows.position_keys(self.kind, self.shape, device)[..., self.first :]
        return hashed_bits(with_index(positions, self.number), self.shape[-1] - self.first, self.first)


def by_document(lengths: Sequence[int]) -> Iterator[int]:
    """Yield the number of each document of a row; what is drawn for it meanwhile is what the rows would draw together.

    Joined rows are documents of their own. The documents of a packed row are parts of it.
    """
    global _pass
    whole = _pass
    if whole is None:
        yield from range(len(lengths))
        return
    after, start = whole, 0
    try:
        for number, length in enumerate(lengths):
            joined = whole.rows.joined
            _pass = replace(whole, rows=whole.rows.alone(number)) if joined else replace(whole, start=start)
            after = _pass
            yield number
            start += length
    finally:
        whole.placed, whole.shared, whole.others = after.placed, after.shared, after.others
        _pass = whole


def lengths_for(shape: Sequence[int]) -> Sequence[int] | None:
    """Return the tokens of each row of a tensor (rows, padded length, width); None where that is not known.

    Where an encoder and a decoder have the same padded length, the calls of a pass alternate between the two.
    """
    if _pass is None or _pass.rows.joined or shape[0] != len(_pass.rows.keys):
        return None
    found = [own for own, width in zip(_pass.rows.lengths, _pass.rows.widths, strict=True) if width == shape[1]]
    _pass.calls += 1
    return found[(_pass.calls - 1) % len(found)] if found else None
