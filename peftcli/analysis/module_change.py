"""What was trained at one place of a model, as numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peftcli.analysis.spectrum import Spectrum


@dataclass(frozen=True)
class ModuleChange:
    """What was trained at one place.

    Args:
        name: key of the adapter, or name of a base parameter.
        role, layer: of the projection, where it has one.
        shape: of the weight that changes.
        change: Frobenius norm of the weight's change; None where it is no weight, or depends on a base not at hand.
        weight: Frobenius norm of the base's weight; None if it is not at hand.
        allotted: r: the rank that the trained factors had.
        spectrum: of a low-rank change, over the ranks that were kept.
        magnitude: least, mean and largest learnt magnitude over the weight's own row norm (DoRA).
        tensors: norm of each saved tensor, where the change is no change of a weight.
        gated: a gate scales the change by what it sees; sizes are those before the gate.
        rows: numbers of the table's rows that were trained, where it is not the whole.
    """

    name: str
    role: str | None = None
    layer: int | None = None
    shape: tuple[int, ...] | None = None
    change: float | None = None
    weight: float | None = None
    allotted: int | None = None
    spectrum: Spectrum | None = None
    magnitude: tuple[float, float, float] | None = None
    tensors: Mapping[str, float] = field(default_factory=dict)
    gated: bool = False
    rows: tuple[int, ...] = ()

    @property
    def relative(self) -> float | None:
        """The change's norm over the weight's."""
        return None if self.change is None or not self.weight else self.change / self.weight

    @property
    def kept(self) -> int | None:
        """Ranks in the file; more than `allotted` where an initial pair is subtracted (PiSSA)."""
        return None if self.spectrum is None else len(self.spectrum.values)

    @property
    def room(self) -> int:
        """The largest rank that the change could have."""
        return max(self.kept or 0, self.allotted or 0)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        found: dict[str, Any] = {
            "module": self.name,
            "role": self.role,
            "layer": self.layer,
            "shape": None if self.shape is None else list(self.shape),
            "change_norm": self.change,
            "weight_norm": self.weight,
            "relative_change": self.relative,
        }
        if self.spectrum is not None:
            found |= {
                "r": self.allotted,
                "kept_rank": self.kept,
                "effective_rank": self.spectrum.effective_rank,
                "rank_90": self.spectrum.rank_of_energy(0.9),
                "rank_99": self.spectrum.rank_of_energy(0.99),
                "rank_used": self.spectrum.effective_rank / self.room if self.room else None,
                "singular_values": list(self.spectrum.values),
            }
        if self.magnitude is not None:
            found["magnitude_ratio"] = dict(zip(("min", "mean", "max"), self.magnitude, strict=True))
        if self.tensors:
            found["tensor_norms"] = dict(self.tensors)
        if self.rows:
            found["rows"] = list(self.rows)
        return found | ({"gated": True} if self.gated else {})


def weight_change(name: str, before: Tensor | None, after: Tensor) -> ModuleChange:
    """Return the row of a base parameter that was trained in place.

    Args:
        name: of the parameter.
        before: the base's value in float32, or None if it is not at hand.
        after: the trained value in float32.
    """
    if before is None or before.shape != after.shape:
        norms = {"trained": float(torch.linalg.vector_norm(after))}
        return ModuleChange(name, None, layer_of(name), tuple(after.shape), tensors=norms)
    change, weight = (float(torch.linalg.vector_norm(each)) for each in (after - before, before))
    return ModuleChange(name, None, layer_of(name), tuple(after.shape), change, weight)


def layer_of(path: str) -> int | None:
    """Return the first number in a module path: the block's."""
    found = re.search(r"\.(\d+)(?:\.|$)", path)
    return int(found.group(1)) if found else None
