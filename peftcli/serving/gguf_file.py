"""Write a GGUF file tensor by tensor, with one of them in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from peftcli.merging.merge_options import refuse_small_disk
from peftcli.progress import stage
from peftcli.serving.gguf_layout import Key

TYPES: dict[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""What `--type` takes: the type of matrices, and the number by which a file says it."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be written.

    Args:
        name: in the file.
        shape: as torch has it.
        read: returns its values, float32.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def kind(self, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
        """Return the type in the file: vectors and norms are float32, rows that are no whole blocks float16."""
        if len(self.shape) <= 1 or self.name.endswith("_norm.weight"):
            return gguf.GGMLQuantizationType.F32
        block, _ = gguf.GGML_QUANT_SIZES[wanted]
        return wanted if self.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def new_writer(architecture: str, keys: Iterable[Key]) -> gguf.GGUFWriter:
    """Return a writer of a file that has these keys, and `general.architecture`."""
    writer = gguf.GGUFWriter(None, architecture)
    for key in keys:
        writer.add_key_value(key.name, key.value, key.kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def write_gguf(path: Path, writer: gguf.GGUFWriter, tensors: Sequence[GgufTensor], kind: str) -> int:
    """Write a file, and return its size in bytes.

    Args:
        path: of the new file.
        writer: with the keys.
        tensors: in the order of the file.
        kind: one of `TYPES`.

    Raises:
        UserError: the disk is too small.
    """
    kinds = [tensor.kind(TYPES[kind][0]) for tensor in tensors]
    sizes = [_bytes(tensor.shape, own) for tensor, own in zip(tensors, kinds, strict=True)]
    refuse_small_disk(path, sum(sizes), "--type")
    for tensor, own, size in zip(tensors, kinds, sizes, strict=True):
        # the writer looks at this type of numpy's alone where it is given no other
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=own)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with stage("writing", len(tensors), "tensors") as advance:
        for tensor, own in zip(tensors, kinds, strict=True):
            values = tensor.read().contiguous().numpy()
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name} has the shape {values.shape}, {tensor.shape} was planned")
            writer.write_tensor_data(gguf.quants.quantize(values, own))
            advance(1)
    writer.close()
    return path.stat().st_size


def _bytes(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(math.prod(shape) // block * size)
