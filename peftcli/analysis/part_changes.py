"""Measure what a method's parts changed: each place's sizes, spectrum and ranks, from the saved tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from peftcli.analysis.base_weights import FileWeights, expert_weight, linears_by_key, role_weight
from peftcli.analysis.module_change import ModuleChange, layer_of, weight_change
from peftcli.analysis.spectrum import product_spectrum
from peftcli.layers.site import Part
from peftcli.models.anatomy import Anatomy, ExpertRole, LinearRole
from peftcli.models.experts.named_experts import by_key
from peftcli.protocol.attachment import Attachment, PlacedRows
from peftcli.protocol.composite_attachment import CompositeAttachment
from peftcli.protocol.composition import SEPARATOR
from peftcli.protocol.method import MergeRule


def _places(attachment: Attachment) -> Iterator[tuple[str, Part, str]]:
    """Yield each part's key, the part, and the prefix of its tensors' names (a composition adds a label in front)."""
    if isinstance(attachment, CompositeAttachment):
        for label, inner in attachment.parts.items():
            for key, part, start in _places(inner):
                yield key, part, f"{label}{SEPARATOR}{start}"
    else:
        for placed in attachment.placed:
            yield placed.key, placed.part, f"{placed.key}."


def _fill_(part: Part, own: Mapping[str, Tensor]) -> None:
    """Put saved tensors in place of a part's own, which are on meta; a file may hold fewer ranks."""
    for suffix, value in own.items():
        path, _, name = suffix.rpartition(".")
        module = part.get_submodule(path)
        if name in module._buffers:
            module._buffers[name] = value.float()
        else:
            module._parameters[name] = nn.Parameter(value.float(), requires_grad=False)


@dataclass
class PartChanges:
    """Measures the places of one attachment, whose model is on the meta device.

    Args:
        anatomy: of the model.
        base: the base's weights, if they are at hand.
        rules: how base parameters change, of a method that folds into them.
        state: the saved tensors.
    """

    anatomy: Anatomy
    base: FileWeights | None
    rules: Mapping[str, MergeRule]
    state: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.linears = linears_by_key(self.anatomy)
        self.experts = by_key(self.anatomy.experts)

    def rows(self, attachment: Attachment) -> Iterator[ModuleChange]:
        """Yield the parts' places, then the base parameters that were trained in place, and rows of the vocabulary."""
        for key, part, start in _places(attachment):
            own = {name.removeprefix(start): value for name, value in self.state.items() if name.startswith(start)}
            yield self._place(key, part, {name: own[name] for name in part.adapter_tensors() if name in own})
        for name in dict.fromkeys([*attachment.unfrozen, *attachment.to_save]):
            if name in self.state and name not in attachment.head:
                yield weight_change(name, self.base.read(name) if self.base else None, self.state[name].float())
        yield from (self._rows_of_table(placed) for placed in attachment.rows if placed.part.adapter_tensors())

    def _rows_of_table(self, placed: PlacedRows) -> ModuleChange:
        """Return what became of trained rows of the vocabulary."""
        after = self.state[f"{placed.key}.trainable_tokens_delta"].float()
        table = self.base.read(f"{placed.table}.weight") if self.base else None
        before = None if table is None else table[placed.numbers]
        return replace(weight_change(placed.key, before, after), rows=tuple(placed.numbers))

    def _place(self, key: str, part: Part, own: Mapping[str, Tensor]) -> ModuleChange:
        linear = self.linears.get(key) or self.experts.get(key)
        gated = isinstance(part.scale, nn.Module)
        role, layer = (linear.role, linear.layer) if linear else (None, layer_of(key))
        allotted = part.allotted_rank()  # before the saved tensors, of the kept ranks alone, are put in place
        if allotted is not None:
            _fill_(part, own)
        factors = part.low_rank() if allotted is not None else None
        magnitude = part.learnt_magnitude()
        before, after = self._before_and_after(key, linear, change=factors is None or magnitude is not None)
        weight = None if before is None else float(torch.linalg.vector_norm(before))
        change = None if before is None or after is None else float(torch.linalg.vector_norm(after - before))
        if factors is None:
            tensors = {name: float(torch.linalg.vector_norm(t.float())) for name, t in own.items()}
            shape = None if before is None else tuple(before.shape)
            return ModuleChange(key, role, layer, shape, change, weight, tensors=tensors, gated=gated)
        left, right = factors
        spectrum = product_spectrum(left, right, 1.0 if gated else float(part.scale))
        return ModuleChange(
            key,
            role,
            layer,
            (left.shape[0], right.shape[1]),
            spectrum.norm if magnitude is None else change,
            weight,
            allotted,
            spectrum,
            _magnitude_ratio(magnitude, before),
            gated=gated,
        )

    def _before_and_after(
        self, key: str, role: LinearRole | ExpertRole | None, *, change: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the role's weight in the base, and, if asked, as a merge would leave it."""
        name = role.path if isinstance(role, ExpertRole) else f"{role.module if role else key}.weight"
        whole = self.base.read(name) if self.base else None
        if whole is None:
            return None, None
        before = _own(whole, role)
        if not change or name not in self.rules:
            return before, None
        return before, _own(self.rules[name].apply(whole.clone()), role)


def _own(weight: Tensor, role: LinearRole | ExpertRole | None) -> Tensor:
    return expert_weight(weight, role) if isinstance(role, ExpertRole) else role_weight(weight, role)


def _magnitude_ratio(magnitude: Tensor | None, weight: Tensor | None) -> tuple[float, float, float] | None:
    if magnitude is None or weight is None:
        return None
    axis = 1 if magnitude.numel() == weight.shape[0] else 0  # a table's magnitudes belong to its columns
    ratio = magnitude.detach() / torch.linalg.vector_norm(weight, dim=axis)
    return float(ratio.min()), float(ratio.mean()), float(ratio.max())
