"""A module, or a part of one, that a method changes; and how several are told in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from peftcli.models.anatomy import ExpertRole, FusedSlice, Stack
from peftcli.models.module_view import Kind


@dataclass(frozen=True)
class Target:
    """A module, or a part of one, that a method changes.

    Args:
        role: its role, or None for a module without one, or for a fused module as a whole.
        module: full path of the module.
        layer: block number within its stack, or None outside the blocks.
        slice: the role's features of a fused module, None for a whole module.
        kind: linear (4- and 8-bit ones too), conv1d (weight stored (in, out)), embedding, or experts (a 3-D parameter).
        key: its path in adapter files.
        stack: encoder or decoder, or None outside the blocks.
        experts: of kind experts, where their weights are and of what shape.
    """

    role: str | None
    module: str
    layer: int | None
    slice: FusedSlice | None
    kind: Kind
    key: str
    stack: Stack | None = None
    experts: ExpertRole | None = None

    @property
    def place(self) -> str:
        """Path of what holds the weight: the module's, or the 3-D parameter's."""
        return self.experts.path if self.experts else self.module


def summarise_targets(targets: Iterable[Target]) -> str:
    """Describe targets, such as `attn.q x 12, attn.v x 12 (12 layers matched)`."""
    targets = list(targets)
    names = Counter(target.role or short_path(target.place) for target in targets)
    blocks = {(target.stack, target.layer) for target in targets if target.layer is not None}
    counts = ", ".join(f"{name} x {count}" for name, count in names.items())
    return f"{counts} ({len(blocks)} layer{'s' * (len(blocks) != 1)} matched)" if blocks else counts


def summarise_ranks(ranked: Iterable[tuple[Target, int]]) -> str | None:
    """Describe ranks that differ, such as `attn.q 3 to 16, attn.v 8`; None where all are one."""
    by_name: dict[str, list[int]] = {}
    for target, rank in ranked:
        by_name.setdefault(target.role or short_path(target.module), []).append(rank)
    if len({rank for ranks in by_name.values() for rank in ranks}) < 2:
        return None
    spans = {name: (min(ranks), max(ranks)) for name, ranks in by_name.items()}
    return ", ".join(f"{name} {low}" + f" to {high}" * (low != high) for name, (low, high) in spans.items())


def short_path(module: str) -> str:
    """Return the part of a path after its last block number."""
    return re.sub(r"^.*\.\d+\.", "", module)
