"""How much of a model a method reaches: the weights that its parts change, and not how many numbers the parts have."""

from __future__ import annotations

from peftcli.layers.added_modules import is_added
from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.expert_parts.expert_part import ExpertPart
from peftcli.layers.quantised.quantised_weights import logical_numbers
from peftcli.models.targets.target import Target
from peftcli.protocol.attachment import Attachment


def reached_share(attachment: Attachment) -> float | None:
    """Return which share of the base's weights lies in what the method changes, 0 to 1; None if it chooses no weights.

    A weight counts whole, however low the rank of its change; of a fused one, the role's rows; of experts, those that
    are changed. Biases do not count.

    Args:
        attachment: of a model on any device.
    """
    if not attachment.targets:
        return None
    some = {
        placed.key: len(placed.part.positions) for placed in attachment.placed if isinstance(placed.part, ExpertPart)
    }
    whole = {target.place for target in attachment.targets if target.slice is None}
    sizes = {
        target.key: _size(attachment, target, some.get(target.key))
        for target in attachment.targets
        if target.slice is None or target.place not in whole
    }
    base = sum(size for name, size in logical_numbers(attachment.model).items() if not is_added(name))
    return sum(sizes.values()) / base


def _size(attachment: Attachment, target: Target, experts: int | None) -> int:
    if target.experts is not None:
        return target.experts.in_features * target.experts.out_features * (experts or target.experts.experts)
    host = attachment.model.get_submodule(target.module)
    if target.kind == "embedding":
        table = BaseTable(host)
        return table.rows * table.width
    view = BaseLinear(host, target.slice)
    return view.in_features * view.out_features
