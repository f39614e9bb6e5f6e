"""Parts at experts that are 3-D parameters: where they are put, and what runs the experts with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.expert_parts.expert_part import ExpertPart, ExpertsView
from peftcli.layers.expert_parts.experts_function import FUNCTION_NAME, experts_site, register, sites_of
from peftcli.models.anatomy import ExpertRole
from peftcli.models.targets.target import Target, short_path
from peftcli.protocol.attachment import Attachment

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def expert_role(target: Target) -> ExpertRole:
    """Return where the weights of a target of kind experts are."""
    assert target.experts is not None and target.experts.parameter is not None  # kind experts
    return target.experts


def experts_view(model: nn.Module, role: ExpertRole) -> ExpertsView:
    """Return the frozen projections that a role names."""
    assert role.parameter is not None  # of a target of kind experts
    return ExpertsView(model.get_submodule(role.module), role.parameter)


def why_not_whole(model: nn.Module, role: ExpertRole) -> str | None:
    """Return that experts are quantised, whose weights no part can work with; None where they are not."""
    weight = model.get_parameter(role.path)
    if weight.ndim == 3 and weight.dtype in _FLOATS:
        return None
    return (
        f"the experts in {short_path(role.path)} are quantised ({weight.dtype}), and changes of experts work on whole "
        "ones only: leave model.load_in_4bit and load_in_8bit out"
    )


def place_expert_part(attachment: Attachment, target: Target, part: ExpertPart) -> None:
    """Add a part at the experts that a target of kind experts names."""
    site = experts_site(attachment.model.get_submodule(expert_role(target).module))
    attachment.place(target.key, part, site.parts)


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


def whole_rows(b: Tensor, role: ExpertRole, rest: float = 0.0) -> Tensor:
    """Return a role's rows (out, n) as rows of its whole parameter: those of other roles are filled with `rest`."""
    if role.slice is None:
        return b
    columns = b.new_full((b.shape[1], role.slice.groups * role.slice.width), rest)
    role.slice.part(columns).copy_(role.slice.split(b.T.contiguous(), role.slice.size))
    return columns.T
