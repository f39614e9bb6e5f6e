"""A base model without values: the class, the head, the dtypes and the 4-bit layers that loading gives.

It is built on the meta device, where a method is attached without drawing anything; `give_memory` then puts tensors of
the tracker in the place of its tensors, so that what it takes is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.data.store.labels import LabelSpec
from peftcli.models.load.dtypes import choose_dtype, dtype_name, dtype_of_4_bit_products
from peftcli.models.load.heads import compute_head_in_float32, configure_head
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.load.load_model import Loaded, shape_of
from peftcli.models.load.model_files import find_source
from peftcli.models.model_tasks import auto_class
from peftcli.models.module_view import ModuleView
from peftcli.models.read_anatomy import head_modules
from peftcli.models.stored_quantised import kept_plain, stored_bits, stored_method, stored_settings
from peftcli.recipe.schema import ModelSpec, TaskName

BLOCK_4BIT, BLOCK_OF_BLOCKS = 64, 256
"""Numbers that share a scale in bitsandbytes' 4-bit formats, and scales that share one with double quantisation."""


def as_held(spec: ModelSpec, config: PretrainedConfig) -> ModelSpec:
    """Return the model block that packs a base as its checkpoint does, if that is stored packed.

    Bits between 4 and 8 count as 8, fewer as 4. Scales are those of bitsandbytes: with double quantisation they take
    what GPTQ's and AWQ's groups of 128 do.
    """
    bits = stored_bits(config)
    if bits is None:
        return spec
    settings = stored_settings(config) or {}
    doubled = bool(settings.get("bnb_4bit_use_double_quant", stored_method(config) != "bitsandbytes"))
    compute = str(settings.get("bnb_4bit_compute_dtype", "auto")).removeprefix("torch.")
    held = {"load_in_4bit": bits <= 4, "load_in_8bit": bits > 4, "bnb_4bit_use_double_quant": doubled}
    return spec.model_copy(update={**held, "bnb_4bit_compute_dtype": compute})


def meta_base(
    spec: ModelSpec, config: PretrainedConfig, task: TaskName, labels: LabelSpec | None, device: torch.device
) -> Loaded:
    """Return what `load_model` would, on the meta device.

    Args:
        config: it is changed as loading changes it.
    """
    configure_head(config, task, labels, spec)
    dtype, note = choose_dtype(spec, config, find_source(spec.name_or_path), device)
    keywords: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code, "dtype": dtype}
    if spec.attn_implementation != "auto":
        keywords["attn_implementation"] = spec.attn_implementation
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config, task).from_config(config, **keywords)
        if spec.load_in_4bit or spec.load_in_8bit:
            pack(model, spec, dtype_of_4_bit_products(spec, dtype, device) if spec.load_in_4bit else dtype)
    compute_head_in_float32(model)
    model.eval()
    identity = BaseIdentity(
        name=spec.name_or_path,
        revision=None,
        fingerprint="",
        quantization="4-bit" if spec.load_in_4bit else "8-bit" if spec.load_in_8bit else None,
        dtype=dtype_name(dtype),
        model_type=config.model_type,
        versions={},
        shape=shape_of(config),
        source="config",
    )
    return Loaded(model, model.config, identity, dtype, [note] if note else [])


def give_memory(model: nn.Module, others: Iterable[nn.Parameter], device: torch.device) -> None:
    """Let every tensor of a model on the meta device be one of the tracker, on `device`.

    Parameters stay the same objects, so that tied modules, hooks and an attachment still hold them.

    Args:
        others: parameters that belong to no module.
    """
    for parameter in [*model.parameters(), *others]:
        if parameter.is_meta:
            fresh: Any = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            fresh.requires_grad_(parameter.requires_grad)
            # nn.Parameter would make another tensor, which cannot be swapped
            vars(fresh).update(vars(parameter), _is_param=True)
            torch.utils.swap_tensors(parameter, fresh)  # type: ignore[no-untyped-call]
    given: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                # zeros: whole numbers have values, since some are indices
                fresh = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
                module._buffers[name] = given.setdefault(id(buffer), fresh)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers, and what packed layers keep beside them."""
    yield from model.parameters()
    yield from model.buffers()


class PackedLinear(nn.Linear):
    """A linear layer whose weight is held in 4 or 8 bits, as bitsandbytes computes it: unpacked for each product.

    Args:
        plain: the layer that it stands for.
        spec: says how many bits.
        compute: dtype of the unpacked weight.
    """

    def __init__(self, plain: nn.Linear, spec: ModelSpec, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute = plain.in_features, plain.out_features, compute
        numbers = plain.weight.numel()
        packed = torch.empty(ceil(numbers / 2) if spec.load_in_4bit else numbers, dtype=torch.uint8)
        blocks = ceil(numbers / BLOCK_4BIT) if spec.load_in_4bit else plain.out_features
        doubled = spec.load_in_4bit and spec.bnb_4bit_use_double_quant
        scales = blocks + 4 * ceil(blocks / BLOCK_OF_BLOCKS) if doubled else 4 * blocks
        self.weight = nn.Parameter(torch.empty_like(plain.weight, dtype=compute), requires_grad=False)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8))
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        apply: Any = _PackedProduct.apply
        out: Tensor = apply(x.to(self.compute), self.packed, (self.out_features, self.in_features))
        return (out if self.bias is None else out + self.bias).to(x.dtype)


class _PackedProduct(torch.autograd.Function):
    """A product with a weight that is unpacked in the forward pass and again in the backward pass, and kept in none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, x.dtype
        return x @ x.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None


def pack(model: PreTrainedModel, spec: ModelSpec, compute: torch.dtype) -> None:
    """Replace the linear layers that are quantised; the head, the output embeddings and what a checkpoint left stay.

    Args:
        compute: dtype of the products.
    """
    view = ModuleView(model)
    heads, left = set(head_modules(view)), kept_plain(model.config)
    output = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or name in heads or module is output:
            continue
        if not any(name == own or name.endswith(f".{own}") or name.startswith(f"{own}.") for own in left):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, PackedLinear(module, spec, compute))
