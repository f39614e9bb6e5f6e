"""Attach the parts of a composition: refuse what cannot share a place, and put gates where they are wanted."""

from __future__ import annotations

from torch import nn

from peftcli.errors import UserError
from peftcli.layers.parts.gates import Gate, Kind, PaddingMask
from peftcli.layers.site import device_of, made_on
from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Placed
from peftcli.protocol.composite_attachment import CompositeAttachment
from peftcli.protocol.composition import PartSpec
from peftcli.protocol.narrow_layers import notes_on_left_out
from peftcli.protocol.registry import registry


def attach_parts(model: nn.Module, anatomy: Anatomy, specs: list[PartSpec]) -> CompositeAttachment:
    """Attach every part, refuse what cannot share a place, and put gates where they are wanted.

    Raises:
        UserError: two parts want the same place, or a part takes no gate.
    """
    whole = CompositeAttachment(model)
    for spec in specs:
        part = registry.method(spec.params.name).attach(model, anatomy, spec.params)
        part.notes += notes_on_left_out(model, anatomy, spec.params, part.targets)
        whole.parts[spec.label] = part
    _refuse_shared_places(whole)
    padding = PaddingMask()
    for spec in specs:
        if spec.gated:
            for placed in whole.parts[spec.label].placed:
                _put_gate(model, anatomy, spec.label, placed, padding)
    if any(spec.gated for spec in specs) and anatomy.layers.get("encoder"):
        whole.undo += padding.note_all(_around(model, anatomy.layers["encoder"][0]))
    for part in whole.parts.values():
        whole.shared.update(part.shared)
        whole.notes += part.notes
    whole.collect()
    return whole


def _refuse_shared_places(whole: CompositeAttachment) -> None:
    """Refuse two parts of one kind at one place, and other changes of a weight that a part computes with."""
    taken: dict[tuple[str, type], str] = {}
    every: list[tuple[str, Placed]] = []
    for label, part in whole.parts.items():
        for placed in part.placed:
            other = taken.setdefault((placed.key, type(placed.part)), label)
            if other != label:
                raise UserError(
                    f"the parts {other} and {label} cannot share a place: both are at {placed.key}",
                    suggestion="give them different targets, or one of them a larger size in place of both",
                )
            every.append((label, placed))
    for alone, rescaling in every:
        if not rescaling.part.exclusive:
            continue
        key = rescaling.key
        near = (label for label, placed in every if placed.part.stage == 0 and _overlap(key, placed.key))
        company = next((label for label in near if label != alone), None)
        if company is not None:
            raise UserError(
                f"the parts {alone} and {company} cannot share a place: what {alone} does depends on the whole weight "
                f"of {key}, which {company} changes too",
                suggestion="give them different targets, or, for lora, leave use_dora out",
            )


def _overlap(one: str, other: str) -> bool:
    """Return whether two keys name the same outputs: the same place, or a fused projection and a role inside it."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _put_gate(model: nn.Module, anatomy: Anatomy, label: str, placed: Placed, padding: PaddingMask) -> None:
    part = placed.part
    width = part.gate_width()
    if width is None:
        raise UserError(
            f"the part {label} takes no gate: what it adds at {placed.key} has no scale that may depend on the input",
            suggestion="use `gates: false`, or leave the part out",
        )
    part.scale = made_on(device_of(part, model), lambda: Gate(width, _kind(anatomy, placed), padding, part.fill_gate))


def _kind(anatomy: Anatomy, placed: Placed) -> Kind:
    """Return how a gate looks at a sequence: by the stack that the part is in, and by what its route can express."""
    in_encoder = any(placed.key.startswith(f"{layer}.") for layer in anatomy.layers.get("encoder", ()))
    if in_encoder:
        return "mean"
    at_attention = any(placed.key == f"{role.module}.prefix" for role in anatomy.attentions)
    return "constant" if at_attention and anatomy.prefix_route != "interface" else "token"


def _around(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules around a block, outermost first: the model, ..., the stack."""
    parts = path.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts))]
    return [model.get_submodule(name) for name in names]
