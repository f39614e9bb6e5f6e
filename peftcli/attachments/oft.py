"""The torch half of OFT: rotations at targets, and COFT's bound, which is kept after every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.site import input_site, output_site
from peftcli.layers.weight_changes.rotation import Rotation, SliceRotation
from peftcli.models.targets.target import Target
from peftcli.protocol.attachment import Attachment


@dataclass
class OftAttachment(Attachment):
    """An attachment whose parts are rotations."""

    def after_optimizer_step(self, step: int, total_steps: int) -> None:
        """Bring the rotations back within COFT's bound, where there is one."""
        for rotation in self._rotations():
            rotation.constrain()

    def _rotations(self) -> Iterable[Rotation]:
        return (placed.part for placed in self.placed if isinstance(placed.part, Rotation))


def rotated_width(model: nn.Module, target: Target) -> int:
    """Return how many features a rotation at this target turns: a projection's inputs, or an embedding's width."""
    host = model.get_submodule(target.module)
    return BaseTable(host).width if target.kind == "embedding" else BaseLinear(host).in_features


def attach_rotation(attachment: Attachment, target: Target, block_size: int, options: dict[str, Any]) -> None:
    """Add a rotation at one target.

    Args:
        options: of `Rotation`.
    """
    host = attachment.model.get_submodule(target.module)
    if target.kind == "embedding":
        table = BaseTable(host)
        part = Rotation(table.width, block_size, name="oft_embedding_R", device=table.device, **options)
        attachment.place(target.key, part, output_site(host).parts)
        return
    base = BaseLinear(host, target.slice)
    if target.slice is None:
        part = Rotation(base.in_features, block_size, device=base.device, **options)
        attachment.place(target.key, part, input_site(host).parts)
    else:
        attachment.place(target.key, SliceRotation(base, block_size, **options), output_site(host).parts)
