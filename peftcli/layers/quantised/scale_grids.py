"""DeepSeek's FP8 (DeepSeek-V3, arXiv:2412.19437, section 3.3): a scale for each block of a weight.

The last blocks of a row and of a column are partial where the weight is no multiple of the block: 576 rows in blocks of
128 have five scales, the last of which is of 64 rows. transformers 5.24 divides the weight evenly among the scales: it
refuses such a weight, or, where the scales divide it by chance (192 rows, two scales), multiplies wrong rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer


class _Dequantize(Fp8Dequantize):  # type: ignore[misc]  # has no types there
    """As transformers', and with partial blocks."""

    def _dequantize_one(self, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        if block is not None:
            scales = spread_scales(scales, quantized.shape, block)
        weight: Tensor = super()._dequantize_one(quantized, scales, output_dtype)
        return weight


class _Quantiser(FineGrainedFP8HfQuantizer):  # type: ignore[misc]  # likewise
    """As transformers', and reads partial blocks."""

    def get_load_operations(self) -> dict[str, Any]:
        """Return what turns stored weights into plain ones."""
        return {**super().get_load_operations(), "dequantize": _Dequantize}


@contextmanager
def partial_blocks_read() -> Iterator[None]:
    """Have transformers read FP8 weights that are no multiple of their blocks, within the context."""
    before = AUTO_QUANTIZER_MAPPING["fp8"]
    AUTO_QUANTIZER_MAPPING["fp8"] = _Quantiser
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING["fp8"] = before


def spread_scales(scales: Tensor, shape: Sequence[int], block: Sequence[int]) -> Tensor:
    """Return a scale for each number of a weight that has partial blocks; the scales as they are for any other.

    Args:
        scales: (..., blocks of rows, blocks of columns).
        shape: of the weight, (..., rows, columns).
        block: rows and columns of a block.
    """
    sides = [*zip(shape[-2:], block, strict=True)]
    if scales.shape[-2:] != tuple(ceil(size / width) for size, width in sides):
        return scales  # in another layout: one for the whole weight, or two numbers in a byte
    if not any(size % width for size, width in sides):
        return scales
    whole = scales if scales.dtype == torch.uint8 else scales.float()  # numbers of a byte cannot be repeated
    for dimension, (size, width) in zip((-2, -1), sides, strict=True):
        whole = whole.repeat_interleave(width, dimension).narrow(dimension, 0, size)
    return whole
