"""What the libraries that multiply matrices on a CPU take for a product and keep: oneDNN in 16 bits, MKL in 32.

Neither is a tensor, so torch does not tell of it. Both lie in the heap between the tensors that lived at the first
product of a kind, and stay, so that these give back no room in one piece. The sizes were read in a trace of malloc
(torch 2.13, AVX-512, products of 4 to 2048 rows, 8 to 8192 columns).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
COMPILED = (258_376, 258_376, 5_440, 5_440, *(200,) * 100)
"""Bytes of the blocks that oneDNN keeps for each product that it has compiled: 0.55 to 0.7 MB in two large ones and 60
to 1100 small ones."""
CACHED = 1024
"""Products that oneDNN keeps compiled at most (ONEDNN_PRIMITIVE_CACHE_CAPACITY)."""
BUFFER, A_COLUMN = 4_300_000, 1024
"""Bytes that MKL keeps for each thread that multiplies, and further ones for each column of the widest product: 4.2 to
5.9 MB and 1024."""


class ProductMemory:
    """What products have left in the heap so far."""

    def __init__(self) -> None:
        self._kinds: set[tuple[object, ...]] = set()
        self._widest = 0

    @property
    def compiled(self) -> int:
        """Products in 16 bits whose shapes, strides or operation no other had."""
        return len(self._kinds)

    def further(self, kinds: int) -> int:
        """Return the bytes that are kept beyond those so far once so many kinds were met; then the oldest give way."""
        return max(0, min(CACHED, kinds) - self.compiled) * sum(COMPILED)

    def kept(self, operation: object, factors: Sequence[Tensor]) -> list[int]:
        """Return the sizes of the blocks that stay behind a product; empty if there was one like it.

        Args:
            factors: the two matrices, or stacks of them, last.
        """
        right = factors[-1]
        if right.device.type != "cpu":
            return []
        if right.dtype in HALVES:
            kind = (operation, *((tuple(each.shape), each.stride(), each.dtype) for each in factors))
            if kind in self._kinds or len(self._kinds) >= CACHED:
                return []
            self._kinds.add(kind)
            return list(COMPILED)
        has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        if right.dtype == torch.float32 and has_mkl:
            first, columns = not self._widest, int(right.shape[-1])
            if columns > self._widest:
                self._widest = columns
                return [BUFFER] * (torch.get_num_threads() - 1 if first else 0) + [BUFFER + A_COLUMN * columns]
        return []
