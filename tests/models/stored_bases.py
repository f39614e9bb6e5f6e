"""Tiny checkpoints that are stored quantised, made by hand or by the library of the quantiser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig

from tests.tiny import save_tiny, tiny_tokenizer

WIDE = {"initializer_range": 0.2}


def write_config(path: Path, **changes: Any) -> None:
    """Change a checkpoint's config.json."""
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _projections(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    tensors = load_file(path / "model.safetensors")
    return tensors, [name for name in tensors if name.endswith("_proj.weight")]


def save_fp8(path: Path, block: tuple[int, int] = (16, 16)) -> Path:
    """Write a tiny llama whose projections are float8 numbers with a scale for each block (DeepSeek).

    Args:
        block: its rows and columns; the last blocks of a weight may be partial.
    """
    save_tiny(path, "llama", **WIDE)
    tensors, names = _projections(path)
    for name in names:
        weight = tensors[name]
        scales = torch.stack(
            [
                torch.stack([part.abs().max() / 448.0 for part in rows.split(block[1], 1)])
                for rows in weight.split(block[0])
            ]
        )
        tensors[name] = (weight / of_blocks(scales, weight.shape, block)).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": block}
    write_config(path, quantization_config=settings)
    return path


def of_blocks(scales: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    """Return the scale of each number of a weight, from those of its blocks."""
    rows, columns = (torch.arange(size) // width for size, width in zip(shape, block, strict=True))
    return scales[rows][:, columns]


def save_compressed(path: Path) -> Path:
    """Write a tiny llama whose projections are whole numbers of 8 bits, with a scale for each row."""
    save_tiny(path, "llama", **WIDE)
    tensors, names = _projections(path)
    for name in names:
        scales = tensors[name].abs().amax(1, keepdim=True) / 127.0
        tensors[name] = (tensors[name] / scales).round().to(torch.int8)
        tensors[f"{name}_scale"] = scales
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    write_config(path, quantization_config=settings)
    return path


def save_mxfp4(path: Path) -> Path:
    """Write a tiny gpt-oss whose experts are numbers of 4 bits, 32 of which share a power of two."""
    config = GptOssConfig(
        vocab_size=128, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **WIDE,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        tensors = load_file(path / "model.safetensors")
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, inner, outer = tensors.pop(name).shape
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(123, 126, (experts, outer, inner // 32), dtype=torch.uint8)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    write_config(path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": left})
    tiny_tokenizer().save_pretrained(path)
    return path


def save_torchao(path: Path, kind: str = "Int8WeightOnlyConfig") -> Path:
    """Write a tiny llama that torchao has quantised."""
    import torchao.quantization
    from transformers import TorchAoConfig

    plain = save_tiny(path.with_name(f"{path.name}-plain"), "llama", **WIDE)
    how = TorchAoConfig(getattr(torchao.quantization, kind)())
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=how, dtype=torch.float32)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


GROUP = 16


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whole numbers from 0 to 15, zeros and scales of each group of a row: (out, in), (out, groups) twice."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales = ((high - low) / 15.0).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    codes = (groups / scales + zeros).round().clamp(0, 15)
    return codes.flatten(1).int(), zeros[..., 0].int(), scales[..., 0]


def _packed(values: Tensor, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> Tensor:
    """Return each eight numbers of 4 bits along the last dimension in one of 32 bits, the first of `order` lowest."""
    eights = values.unflatten(-1, (-1, 8))[..., list(order)].long()
    whole = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int().contiguous()


def four_bit_weights(path: Path) -> dict[str, Tensor]:
    """Return what the numbers of `save_gptq` and `save_awq` stand for, from the plain model beside them."""
    tensors, names = _projections(path.with_name(f"{path.name}-plain"))
    found = {}
    for name in names:
        codes, zeros, scales = _four_bits(tensors[name])
        wide = (each.repeat_interleave(GROUP, 1) for each in (zeros, scales))
        found[name] = (codes - next(wide)) * next(wide)
    return found


def save_gptq(path: Path) -> Path:
    """Write a tiny llama whose projections are numbers of 4 bits as GPTQ packs them, in groups of columns."""
    return _save_four_bits(
        path,
        {"quant_method": "gptq", "group_size": GROUP, "desc_act": False, "sym": False, "checkpoint_format": "gptq"},
        lambda codes, zeros: {
            "qweight": _packed(codes).T.contiguous(),
            "qzeros": _packed(zeros.T - 1),  # this format stores one less
            "g_idx": (torch.arange(codes.shape[1]) // GROUP).int(),
        },
    )


def save_awq(path: Path) -> Path:
    """Write a tiny llama whose projections are numbers of 4 bits as AWQ packs them, in groups of columns."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return _save_four_bits(
        path,
        {"quant_method": "awq", "group_size": GROUP, "zero_point": True, "version": "gemm"},
        lambda codes, zeros: {"qweight": _packed(codes.T, order), "qzeros": _packed(zeros.T, order)},
    )


def _save_four_bits(path: Path, settings: dict[str, Any], pack: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> Path:
    save_tiny(path.with_name(f"{path.name}-plain"), "llama", **WIDE)
    save_tiny(path, "llama", **WIDE)
    tensors, names = _projections(path)
    for name in names:
        codes, zeros, scales = _four_bits(tensors.pop(name))
        packed = {**pack(codes, zeros), "scales": scales.T.half().contiguous()}
        tensors |= {f"{name.removesuffix('weight')}{key}": value for key, value in packed.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    write_config(path, quantization_config={"bits": 4, **settings})
    return path


STORED: dict[str, Callable[[Path], Path]] = {
    "fp8": save_fp8,
    "mxfp4": save_mxfp4,
    "compressed-tensors": save_compressed,
    "torchao": save_torchao,
    "gptq": save_gptq,
    "awq": save_awq,
}
"""By what `quantization_config.quant_method` says."""
