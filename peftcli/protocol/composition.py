"""What a composition (MAM, UniPELT, `compose`) is made of: its parts, their labels, and what can be one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams

SEPARATOR = ":"
"""Between a part's label and its own keys in the adapter file; no module path holds it."""


@dataclass(frozen=True)
class PartSpec:
    """One part of a composition.

    Args:
        label: what its keys begin with and what messages call it, unique in the composition.
        params: the method and its hyper-parameters.
        gated: whether gates take the place of its scales.
    """

    label: str
    params: MethodParams
    gated: bool = False


class CompositeParams(MethodParams):
    """Hyper-parameters of a composition: they say which methods it is made of."""

    @property
    @abstractmethod
    def specs(self) -> list[PartSpec]:
        """The parts, in the order in which they are attached."""

    def with_parts(self, parts: Mapping[str, MethodParams]) -> MethodParams:
        """Return these hyper-parameters with other ones of the parts, by label; the same where the parts are fixed."""
        return self


def labelled(parts: Sequence[MethodParams], gates: bool = False) -> list[PartSpec]:
    """Return specs whose labels are the methods' names, numbered where a method comes twice."""
    seen: dict[str, int] = {}
    specs = []
    for params in parts:
        seen[params.name] = seen.get(params.name, 0) + 1
        number = f"_{seen[params.name]}" if seen[params.name] > 1 else ""
        specs.append(PartSpec(f"{params.name}{number}", params, gates))
    return specs


def why_no_part(params: MethodParams) -> str | None:
    """Return why a method cannot be a part of a composition, or None."""
    info = registry.info(params.name)
    if info.artifact == "model":
        return f"{info.name} trains base weights themselves, so nothing can be added beside it"
    if info.forces_4bit:
        return f"{info.name} is a choice of base; use lora as the part and model.load_in_4bit: true"
    if params.modules_to_save or params.trainable_token_indices or params.init_from:
        whole = "modules_to_save, trainable_token_indices and init_from"
        return f"{whole} belong to the whole composition, not to its part {info.name}"
    return None
