"""Bases in fewer bits: quantised here by bitsandbytes, or stored quantised. Imported only where one is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.cpu.wide_products import is_emulated
from peftcli.layers.quantised.quantised_weights import is_quantised, logical_sizes
from peftcli.models.load.dtypes import dtype_of_4_bit_products
from peftcli.models.module_view import ModuleView
from peftcli.models.read_anatomy import head_modules, read_anatomy
from peftcli.models.stored_quantised import (
    becomes_plain,
    choose_layers,
    quantiser_title,
    read_dequantised,
    stored_method,
    stored_problems,
    stored_settings,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from peftcli.models.anatomy import Anatomy
    from peftcli.recipe.schema import ModelSpec


def quantisation_keywords(
    spec: ModelSpec,
    config: PretrainedConfig,
    task_model: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    *,
    divided: bool = False,
) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` for a quantised base.

    Args:
        config: says whether the checkpoint is quantised already; then its own settings hold. One whose weights become
            plain ones is told to do that.
        task_model: the same model on the meta device, to know its head: what is trained whole stays unquantised.
        dtype: of the weights that stay unquantised, and of the products where `bnb_4bit_compute_dtype` is auto.
        divided: whether the base will be divided among processes: FSDP2 divides numbers with a fraction only, so the
            packed bytes are stored as such.

    Raises:
        UserError: the quantiser is unknown or missing, both widths are asked for, or the device cannot run it.
    """
    problems = stored_problems(config, spec, device.type)
    if problems:
        raise UserError(problems)
    keywords: dict[str, Any] = {"device_map": {"": device}}
    read_dequantised(config)
    choose_layers(config, device.type)
    if stored_method(config) not in (None, "bitsandbytes"):
        return keywords
    _check_bitsandbytes(spec, device)
    if stored_method(config) is not None:
        return keywords
    from transformers import BitsAndBytesConfig

    view = ModuleView(task_model)
    kept = [*head_modules(view)]
    output = task_model.get_output_embeddings() if not kept else None
    kept += [name for name, module in view.modules.items() if output is not None and module is output]
    compute = dtype_of_4_bit_products(spec, dtype, device)
    keywords["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=spec.load_in_4bit,
        load_in_8bit=spec.load_in_8bit,
        bnb_4bit_quant_type=spec.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=spec.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute if divided else None,
        llm_int8_skip_modules=kept or None,
    )
    return keywords


def _check_bitsandbytes(spec: ModelSpec, device: torch.device) -> None:
    if spec.load_in_4bit and spec.load_in_8bit:
        raise UserError(Problem("load_in_4bit and load_in_8bit exclude each other", key="model.load_in_8bit"))
    if find_spec("bitsandbytes") is None:
        raise UserError(
            Problem(
                "4- and 8-bit models need the package bitsandbytes, which is not installed",
                key="model",
                suggestion="pip install bitsandbytes; where it has no wheel, leave load_in_4bit out",
            )
        )
    if device.type not in ("cuda", "cpu", "xpu"):
        raise UserError(
            Problem(
                f"bitsandbytes does not compute on {device.type}",
                key="model",
                suggestion="training.device: cpu computes 4-bit layers, slowly; or leave load_in_4bit out",
            )
        )


def finish_quantised(model: PreTrainedModel, spec: ModelSpec, stored: str | None) -> tuple[str, list[str]]:
    """Make a freshly loaded quantised model safe to train, and report on it.

    Args:
        stored: the quantiser of the checkpoint, as `stored_method` names it; None if this project quantised it.

    Returns:
        The quantisation in words, and notes, the share of the block weights that is quantised among them.

    Raises:
        UserError: a smaller share than `spec.min_quantized_share` was quantised here.
    """
    if stored is not None and becomes_plain(stored):
        note = (
            f"stored quantised with {quantiser_title(stored)}, dequantised while it loads: what is trained, and merged "
        )
        return f"{stored}, dequantised", [f"{note}into, is the dequantised model"]
    keep_trainable(model)
    anatomy = read_anatomy(model, spec.anatomy)
    share = quantised_share(model, anatomy)
    described = describe_quantisation(model)
    notes = [f"{share:.0%} of the block weights are quantised ({described})"]
    if _compute_in_float32(model):
        notes.append("4-bit weights are multiplied in float32: this processor has no bfloat16 instructions")
    if stored is None and share < spec.min_quantized_share:
        accepted = int(share * 100) / 100
        raise UserError(
            Problem(
                f"only {share:.0%} of the block weights of this {anatomy.family} model are quantised; "
                f"in 16 or 32 bits: {_largest_unquantised(model, anatomy)}",
                key="model.min_quantized_share",
                suggestion=f"accept it with model.min_quantized_share: {accepted:g}, or load 16-bit weights",
            )
        )
    return described, notes


def keep_trainable(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking or compiling themselves.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer's weight in place at its first evaluation pass. From
    then on no gradient passes through the layer, and saving or dequantising it gives garbage. gptqmodel has torch
    compile each layer's dequantisation on its own: a model of 14 layers took 90 seconds of processor time for that.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (an attribute of bitsandbytes, not ours)
        vars(module).pop("dequantize_weight", None)  # the compiled one; the method of the class is below it


def _compute_in_float32(model: nn.Module) -> bool:
    """Let 4-bit layers compute in float32 where a stored setting says bfloat16, and a CPU would emulate it."""
    device = next(model.parameters()).device
    slow = [m for m in model.modules() if is_emulated(getattr(m, "compute_dtype", None), device)]
    for module in slow:
        setattr(module, "compute_dtype", torch.float32)  # noqa: B010  (an attribute of bitsandbytes, not ours)
    return bool(slow)


def divided_problems(config: PretrainedConfig) -> list[Problem]:
    """Return that a checkpoint is stored in numbers that cannot be divided among processes."""
    settings, method = stored_settings(config), stored_method(config)
    if settings is None or method is None or becomes_plain(method):
        return []
    if "float" in str(settings.get("bnb_4bit_quant_storage") or ""):
        return []
    return [
        Problem(
            f"distributed.strategy = fsdp; this checkpoint is quantised already ({method}), and its packed "
            "numbers cannot be sharded over processes",
            key="distributed.strategy",
            suggestion="name the original model with model.load_in_4bit: true, or write strategy: ddp",
        )
    ]


def quantised_share(model: nn.Module, anatomy: Anatomy) -> float:
    """Return the share of the numbers in the blocks that is held in fewer bits."""
    low = total = 0
    for _, module in _block_modules(model, anatomy):
        sizes = logical_sizes(module)
        total += sum(sizes.values())
        low += sizes["weight"] if is_quantised(module) else 0
    return low / total if total else 0.0


def _block_modules(model: nn.Module, anatomy: Anatomy) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in the blocks, with their path below a block."""
    for paths in anatomy.layers.values():
        for path in paths:
            yield from model.get_submodule(path).named_modules()


def _largest_unquantised(model: nn.Module, anatomy: Anatomy) -> str:
    """Return the largest unquantised weights of the blocks, by their path below a block."""
    sizes: Counter[str] = Counter()
    total = 0
    for path, module in _block_modules(model, anatomy):
        for name, size in logical_sizes(module).items():
            total += size
            if not (name == "weight" and is_quantised(module)):
                sizes[f"{path}.{name}".lstrip(".")] += size
    return ", ".join(f"{name} ({size / total:.0%})" for name, size in sizes.most_common(3))


def describe_quantisation(model: PreTrainedModel) -> str:
    """Return the quantisation in words, such as `bitsandbytes 4-bit nf4, double, computes in bfloat16`."""
    config = getattr(model.config, "quantization_config", None)
    values = config if isinstance(config, dict) else config.to_dict() if config is not None else {}
    if not (values.get("load_in_4bit") or values.get("load_in_8bit")):
        return quantiser_title(stored_method(model.config) or "unknown")
    if values.get("load_in_8bit"):
        return "bitsandbytes 8-bit"
    double = ", double" if values.get("bnb_4bit_use_double_quant") else ""
    compute = str(values.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
    return f"bitsandbytes 4-bit {values.get('bnb_4bit_quant_type', 'fp4')}{double}, computes in {compute}"
