"""The torch half of LoRA on experts that are 3-D parameters, and what their saved factors do to the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from peftcli.attachments.expert_places import (
    expert_role,
    experts_view,
    place_expert_part,
    use_experts_function,
    whole_rows,
    why_not_whole,
)
from peftcli.attachments.lora import LINEAR_INITS, LoraAttachment, LoraPlace, LoraVariant, rank_above_matrix
from peftcli.errors import Problem, UserError
from peftcli.layers.expert_parts.expert_delta import ExpertsDelta, expert_factors
from peftcli.layers.expert_parts.expert_dora import ExpertsDora
from peftcli.layers.parts.lora_init import kaiming_init
from peftcli.layers.parts.magnitude import rescaling
from peftcli.models.anatomy import ExpertRole
from peftcli.models.targets.target import short_path
from peftcli.protocol.method import RowsChange


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
    problems: dict[Problem, None] = {}
    for place in places:
        role = expert_role(place.target)
        problem = _why_not(model, role, place, variant)
        if problem:
            problems[problem] = None
            continue
        kind = ExpertsDora if variant.dora else ExpertsDelta
        part = kind(
            experts_view(model, role),
            (role.in_features, role.out_features),
            sorted(range(role.experts) if numbers is None else numbers),
            place.rank,
            variant.scale_of(place),
            rows=role.slice,
            dropout=variant.dropout,
            init=LINEAR_INITS.get(variant.init, kaiming_init),
            freeze_a=variant.freeze_a,
        )
        attachment.targets.append(place.target)
        attachment.places[place.target.key] = place
        place_expert_part(attachment, place.target, part)
    if problems:
        raise UserError(problems)
    if places:
        attachment.undo.append(use_experts_function(model))


def _why_not(model: nn.Module, role: ExpertRole, place: LoraPlace, variant: LoraVariant) -> Problem | None:
    """Return what is wrong with a place, in words that are the same in every block; None if nothing is."""
    name, other = short_path(role.path), "leave the experts out of method.target_modules, or change that"
    quantised = why_not_whole(model, role)
    if quantised:
        return Problem(quantised, key="method.target_modules", suggestion=other)
    if variant.decomposition is not None:
        reason = f"init_lora_weights: {variant.init} decomposes one matrix, and {name} holds {role.experts}"
        return Problem(reason, key="method.init_lora_weights", suggestion=other)
    if variant.biases:
        reason = f"bias: lora_only is not defined for the experts in {name}: use none, or all"
        return Problem(reason, key="method.bias", suggestion=other)
    above = rank_above_matrix(place.rank, role.out_features, role.in_features, role.role or name)
    return Problem(above, key="method.r", suggestion=other) if above else None


def experts_change(
    tensors: Mapping[str, Tensor], role: ExpertRole, scale: float, numbers: Collection[int] | None = None
) -> RowsChange:
    """Return the change of experts that saved factors stand for: s B_e A_e, of each expert by itself.

    Args:
        tensors: `lora_A.weight` and `lora_B.weight` as `ExpertsDelta` has them, and DoRA's `lora_magnitude_vector`.
        role: what they change.
        scale: s.
        numbers: of the changed experts; None for all.
    """
    every = sorted(range(role.experts) if numbers is None else numbers)
    positions = {expert: position for position, expert in enumerate(every)}
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    every_a, every_b = expert_factors(a, b, len(a) // len(every))
    magnitudes = tensors.get("lora_magnitude_vector")

    def change(expert: int, start: int, rows: Tensor) -> Tensor:
        if expert not in positions:
            return rows
        position = positions[expert]
        span = slice(start, start + len(rows))
        rows.addmm_(whole_rows(every_b[position], role)[span].to(rows), every_a[position].to(rows), alpha=scale)
        if magnitudes is not None:
            wanted = magnitudes[position].to(rows).unsqueeze(1)
            own = whole_rows(torch.ones_like(wanted), role)[span] != 0  # those of other roles keep theirs
            norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows.mul_(torch.where(own, rescaling(whole_rows(wanted, role)[span], norm), 1.0))
        return rows

    return change
