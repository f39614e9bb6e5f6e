"""A recipe's `distributed` block: what a device or a quantised base cannot take."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.pydantic_messages import Finding
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names

_STRATEGY = ("distributed", "strategy")
_REMEDY = "write strategy: ddp, which keeps the whole base on each device"


def check_distributed(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield what contradicts the strategy."""
    spec, model, device = recipe.distributed, recipe.model, recipe.training.device
    if spec.strategy == "ddp" and spec.cpu_offload:
        reason = "distributed.cpu_offload moves the shares of a sharded base, and distributed.strategy is ddp"
        yield Finding(("distributed", "cpu_offload"), reason, "write strategy: fsdp, or leave cpu_offload out")
    if spec.strategy == "ddp" and not spec.reshard_after_forward:
        reason = "distributed.reshard_after_forward is for a sharded base, and distributed.strategy is ddp"
        yield Finding(("distributed", "reshard_after_forward"), reason, "write strategy: fsdp, or leave it out")
    if spec.cpu_offload and device in ("cpu", "mps"):
        reason = f"distributed.cpu_offload moves weights from a GPU, and training.device is {device}"
        yield Finding(("distributed", "cpu_offload"), reason, "leave it out")
    if spec.strategy != "fsdp":
        return
    if device == "mps":
        yield Finding(_STRATEGY, "distributed.strategy = fsdp; training.device mps is one device alone", _REMEDY)
    if model.load_in_8bit:
        reason = "distributed.strategy = fsdp; bitsandbytes' 8-bit weights (model.load_in_8bit) cannot be divided"
        yield Finding(_STRATEGY, reason, f"load in 4 bits, or {_REMEDY}")
    if names.methods.params_model(recipe.method.name) is not None:
        yield from _trained_whole(recipe, names)


def _trained_whole(recipe: Recipe, names: Names) -> Iterator[Finding]:
    """Yield what a method that trains the base itself cannot take: its optimizer then works on shares, too."""
    name, optim = recipe.method.name, recipe.training.optim
    if names.methods.info(name).artifact != "model":
        return
    if recipe.distributed.cpu_offload:
        reason = f"distributed.cpu_offload is for a frozen base, and the method {name} trains the base itself"
        yield Finding(("distributed", "cpu_offload"), reason, "leave it out, or choose another method: `peft methods`")
    if optim in OPTIMIZERS and OPTIMIZERS[optim].package == "bitsandbytes":
        reason = f"distributed.strategy = fsdp; {optim} of bitsandbytes cannot step on the shares that {name} trains"
        yield Finding(_STRATEGY, reason, f"write optim: adamw_torch, or {_REMEDY}")
