"""The torch half of (IA)3 on experts that are 3-D parameters: the parts, and what their vectors do to the weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from peftcli.attachments.expert_places import (
    expert_role,
    experts_view,
    place_expert_part,
    use_experts_function,
    whole_rows,
    why_not_whole,
)
from peftcli.errors import Problem, UserError
from peftcli.layers.expert_parts.expert_rescale import ExpertsRescale
from peftcli.models.anatomy import ExpertRole
from peftcli.models.targets.target import Target
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.folding import Folding
from peftcli.protocol.method import CHANGES, CHANGES_INPUT


def attach_expert_rescale(
    attachment: Attachment, targets: Sequence[Target], inner: Collection[str], numbers: Collection[int] | None = None
) -> None:
    """Add vectors at 3-D parameters of experts, one for each expert that is changed.

    Args:
        attachment: of the model; the parts become its own.
        targets: of kind experts.
        inner: keys of those whose input is rescaled, not their output.
        numbers: of the experts to change; None for all.

    Raises:
        UserError: the experts are quantised.
    """
    model = attachment.model
    for target in targets:
        role = expert_role(target)
        reason = why_not_whole(model, role)
        if reason:
            raise UserError(Problem(reason, key="method.target_modules", suggestion="leave the experts out"))
        view, changed = experts_view(model, role), _changed(role, numbers)
        if target.key in inner:
            part = ExpertsRescale(view, role.in_features, "input", changed, None)
        else:
            part = ExpertsRescale(view, role.out_features, "output", changed, role.slice)
        place_expert_part(attachment, target, part)
    if targets:
        attachment.undo.append(use_experts_function(model))


def fold_expert_vectors(
    folding: Folding, role: ExpertRole, vectors: Tensor, numbers: Collection[int] | None = None
) -> None:
    """Fold one saved vector for each changed expert into the weights, and the biases where outputs are rescaled.

    Args:
        folding: receives the changes.
        role: what the vectors rescale.
        vectors: (experts, out, 1), or (experts, 1, in), float32.
        numbers: of the changed experts; None for all.
    """
    every = vectors.new_ones(role.experts, *vectors.shape[1:])
    every[_changed(role, numbers)] = vectors
    if vectors.shape[1] == 1:
        folding.change_experts(role, lambda expert, _start, rows: rows.mul_(every[expert]), CHANGES_INPUT)
        return
    whole = torch.stack([whole_rows(vector, role, rest=1.0) for vector in every])

    def rescale(expert: int, start: int, rows: Tensor) -> Tensor:
        return rows.mul_(whole[expert, start : start + len(rows)])

    folding.change_experts(role, rescale, CHANGES)
    folding.change_expert_biases(role, lambda biases: biases.mul_(every.squeeze(2)))


def _changed(role: ExpertRole, numbers: Collection[int] | None) -> list[int]:
    return sorted(range(role.experts) if numbers is None else numbers)
