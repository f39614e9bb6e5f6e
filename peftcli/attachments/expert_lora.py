"""The torch half of LoRA on experts that are 3-D parameters: the parts, and what runs the experts with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.attachments.lora import LINEAR_INITS, LoraAttachment, LoraPlace, LoraVariant, rank_above_matrix
from peftcli.errors import UserError
from peftcli.layers.expert_parts.expert_delta import ExpertsDelta, expert_factors
from peftcli.layers.expert_parts.experts_function import FUNCTION_NAME, experts_site, register, sites_of
from peftcli.layers.parts.lora_init import kaiming_init
from peftcli.models.anatomy import ExpertRole
from peftcli.protocol.method import RowsChange

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def attach_expert_lora(
    attachment: LoraAttachment,
    places: Sequence[LoraPlace],
    variant: LoraVariant,
    numbers: Collection[int] | None = None,
) -> None:
    """Add parts at 3-D parameters of experts, and let the model run its experts through the function that knows parts.

    Args:
        attachment: of the model; the parts become its own.
        places: targets of kind experts.
        variant: what all changes have in common.
        numbers: of the experts to change; None for all.

    Raises:
        UserError: a rank is above its matrix, or the variant does not fit experts.
    """
    model = attachment.model
    places = [place for place in places if place.rank]
    reasons: dict[str, None] = {}
    for place in places:
        role = place.target.experts
        assert role is not None and role.parameter is not None  # kind experts
        weight = model.get_parameter(role.path)
        reason = _why_not(role, weight, place, variant)
        if reason:
            reasons[reason] = None
            continue
        part = ExpertsDelta(
            weight,
            (role.in_features, role.out_features),
            sorted(range(role.experts) if numbers is None else numbers),
            place.rank,
            variant.scale_of(place),
            parameter=role.parameter,
            rows=role.slice,
            dropout=variant.dropout,
            init=LINEAR_INITS.get(variant.init, kaiming_init),
            freeze_a=variant.freeze_a,
        )
        attachment.targets.append(place.target)
        attachment.places[place.target.key] = place
        attachment.place(role.key, part, experts_site(model.get_submodule(role.module)).parts)
    if reasons:
        raise UserError("; ".join(reasons), suggestion="leave the experts out of method.target_modules, or change that")
    if places:
        attachment.undo.append(use_experts_function(model))


def _why_not(role: ExpertRole, weight: Tensor, place: LoraPlace, variant: LoraVariant) -> str | None:
    if weight.ndim != 3 or weight.dtype not in _FLOATS:
        return (
            f"the experts in {role.path} are quantised ({weight.dtype}), and LoRA on experts works on whole ones only: "
            "leave model.load_in_4bit and load_in_8bit out"
        )
    if variant.dora:
        return f"use_dora needs a norm of every row of every expert in {role.path}, which is not offered: leave it out"
    if variant.decomposition is not None:
        return f"init_lora_weights: {variant.init} decomposes one matrix, and {role.path} holds {role.experts}"
    if variant.biases:
        return f"bias: lora_only is not defined for the experts in {role.path}: use none, or all"
    return rank_above_matrix(place.rank, role.out_features, role.in_features, place.name)


def use_experts_function(model: nn.Module) -> Callable[[], None]:
    """Switch a model to the function that runs parts of experts; return what switches it back once none is left.

    Raises:
        UserError: the model's code takes no function of others.
    """
    register()
    live: Any = model
    sites = sites_of(model)
    current: dict[str, str | None] = live.get_experts_implementation()
    before = next((site.before for site in sites if site.before is not None), current)
    if FUNCTION_NAME not in current.values():
        live.set_experts_implementation(FUNCTION_NAME)
    for site in sites:
        site.before = before

    def restore() -> None:
        if not any(len(site.parts) for site in sites):
            live.set_experts_implementation(before)

    return restore


def experts_change(
    tensors: Mapping[str, Tensor], role: ExpertRole, scale: float, numbers: Collection[int] | None = None
) -> RowsChange:
    """Return the change of experts that saved factors stand for: s B_e A_e, of each expert by itself.

    Args:
        tensors: `lora_A.weight` and `lora_B.weight` as `ExpertsDelta` has them.
        role: what they change.
        scale: s.
        numbers: of the changed experts; None for all.
    """
    every = sorted(range(role.experts) if numbers is None else numbers)
    positions = {expert: position for position, expert in enumerate(every)}
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    every_a, every_b = expert_factors(a, b, len(a) // len(every))

    def change(expert: int, start: int, rows: Tensor) -> Tensor:
        if expert not in positions:
            return rows
        left = whole_rows(every_b[positions[expert]], role)[start : start + len(rows)]
        return rows.addmm_(left.to(rows), every_a[positions[expert]].to(rows), alpha=scale)

    return change


def whole_rows(b: Tensor, role: ExpertRole) -> Tensor:
    """Return one expert's B, (out, r), with zeros for the features of a fused parameter that the role does not have."""
    if role.slice is None:
        return b
    columns = b.new_zeros(b.shape[1], role.slice.groups * role.slice.width)
    role.slice.part(columns).copy_(role.slice.split(b.T.contiguous(), role.slice.size))
    return columns.T
