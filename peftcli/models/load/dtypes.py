"""The dtype of the frozen weights: the checkpoint's where the device computes it well, else float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from peftcli.errors import Problem, UserError
from peftcli.layers.cpu.wide_products import cpu_has_bfloat16, is_emulated
from peftcli.models.weights.tensor_header import read_header

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from peftcli.models.load.model_files import ModelSource
    from peftcli.recipe.schema import ModelSpec

# What frozen weights of a stored type are held in.
_HELD_AS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}


def dtype_named(name: str) -> torch.dtype:
    """Return torch's type of a name such as `bfloat16`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return a type's name, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def choose_dtype(
    spec: ModelSpec, config: PretrainedConfig, source: ModelSource, device: torch.device
) -> tuple[torch.dtype, str | None]:
    """Return the dtype of the frozen weights, and a note if it is not the checkpoint's own.

    Raises:
        UserError: float16 on a CPU, whose products are slow and overflow; a dtype that the implementation of attention
            lacks.
    """
    dtype, note = _wanted_dtype(spec, config, source, device)
    if spec.attn_implementation == "flash_attention_2" and dtype not in (torch.float16, torch.bfloat16):
        # training could cast, but evaluation and prediction compute in the weights' dtype
        raise UserError(
            Problem(
                f"flash_attention_2 computes in float16 and bfloat16 only; the weights are held in {dtype_name(dtype)}",
                key="model.attn_implementation",
                suggestion="set model.dtype: bfloat16, or attn_implementation: sdpa",
            )
        )
    return dtype, note


def _wanted_dtype(
    spec: ModelSpec, config: PretrainedConfig, source: ModelSource, device: torch.device
) -> tuple[torch.dtype, str | None]:
    stored = checkpoint_dtype(config, source)
    if spec.dtype != "auto":
        dtype = dtype_named(spec.dtype)
        if dtype == torch.float16 and device.type == "cpu":
            raise UserError(
                Problem(
                    "float16 computes slowly and overflows on a CPU",
                    key="model.dtype",
                    suggestion="use auto, float32 or bfloat16",
                )
            )
        return dtype, None
    if stored == torch.float32 or computes_well(stored, device):
        return stored, None
    note = f"the checkpoint is {dtype_name(stored)}, which this {device.type} does not compute well: held in float32"
    if is_emulated(stored, device):
        note += "; model.dtype: bfloat16 takes half of that memory, and multiplies in float32, too"
    return torch.float32, note


def dtype_of_4_bit_products(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of products with 4-bit weights.

    Auto is bfloat16 on a GPU that has it, else that of the other weights; float32 where the device would emulate it.
    """
    if spec.bnb_4bit_compute_dtype != "auto":
        chosen = dtype_named(spec.bnb_4bit_compute_dtype)
        return chosen if chosen == torch.float32 or computes_well(chosen, device) else torch.float32
    if device.type == "cuda" and computes_well(torch.bfloat16, device):
        return torch.bfloat16
    return torch.float32 if is_emulated(dtype, device) else dtype


def checkpoint_dtype(config: PretrainedConfig, source: ModelSource) -> torch.dtype:
    """Return the dtype of most numbers in the checkpoint's files, or the config's if there are no files."""
    if source.kind == "gguf":
        return torch.float32  # dequantised on loading
    if source.path is not None:
        stored = _stored_dtype(source.path)
        if stored is not None:
            return stored
    declared = config.dtype
    if isinstance(declared, str):
        declared = getattr(torch, declared.removeprefix("torch."), None)
    return declared if declared in _HELD_AS.values() else torch.float32


def _stored_dtype(directory: Path) -> torch.dtype | None:
    """The dtype of most numbers in a directory's safetensors files, from their headers."""
    counts: Counter[str] = Counter()
    for file in directory.glob("*.safetensors"):
        try:
            entries = read_header(file).values()
        except ValueError:
            return None  # transformers' own message follows when it opens the file
        for entry in entries:
            if entry.dtype in _HELD_AS:
                counts[entry.dtype] += entry.nbytes
    return _HELD_AS[counts.most_common(1)[0][0]] if counts else None


def computes_well(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether a device has fast, safe products of a half-precision dtype."""
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return dtype == torch.bfloat16 and torch.backends.mps.is_macos_or_newer(14, 0)
    return dtype == torch.bfloat16 and cpu_has_bfloat16()
