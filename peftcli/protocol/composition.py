"""Compositions: several methods on one model as one. MAM, UniPELT and `compose` are made of this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftcli.protocol.method import MergeRule
from peftcli.protocol.registry import registry
from peftcli.recipe.params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

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
    if params.modules_to_save or params.init_from:
        return f"modules_to_save and init_from belong to the whole composition, not to its part {info.name}"
    return None


def check_parts(anatomy: Anatomy, specs: Sequence[PartSpec]) -> list[str]:
    """Return why this model cannot carry one of the parts."""
    return _ask("check", specs, anatomy)


def check_parts_config(config: Mapping[str, Any], specs: Sequence[PartSpec]) -> list[str]:
    """Return what a config.json says against one of the parts."""
    return _ask("check_config", specs, config)


def _ask(question: str, specs: Sequence[PartSpec], subject: Any) -> list[str]:
    found = []
    for spec in specs:
        ask: Callable[[Any, MethodParams], list[str]] | None = getattr(
            registry.module(spec.params.name), question, None
        )
        found += [f"{spec.label}: {reason}" for reason in (ask(subject, spec.params) if ask else [])]
    return found


def check_parts_run(specs: Sequence[PartSpec], total_steps: int) -> list[str]:
    """Return why a run of this length does not suit one of the parts."""
    found = []
    for spec in specs:
        ask = getattr(registry.module(spec.params.name), "check_run", None)
        found += [f"{spec.label}: {reason}" for reason in (ask(spec.params, total_steps) if ask else [])]
    return found


def positions_taken_by(anatomy: Anatomy, specs: Sequence[PartSpec]) -> int:
    """Return how many positions the parts use up together."""
    total = 0
    for spec in specs:
        ask = getattr(registry.module(spec.params.name), "positions_taken", None)
        total += ask(anatomy, spec.params) if ask else 0
    return total


def why_not_mergeable(specs: Sequence[PartSpec]) -> str | None:
    """Return why a composition does not fold into base weights: the first part that does not, or its gates."""
    for spec in specs:
        if spec.gated:
            return (
                f"the part {spec.label} is gated: its change depends on the input; keep the adapter beside its base, "
                "or train without gates"
            )
        reason = registry.info(spec.params.name).why_not_mergeable(spec.params)
        if reason:
            return f"the part {spec.label} does not merge: {reason}"
    return None


def merge_rules_of(anatomy: Anatomy, specs: Sequence[PartSpec], state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
    """Return the rules of all parts; where two change one tensor, in the order of the parts."""
    combined: dict[str, MergeRule] = {}
    plain = {key: value for key, value in state.items() if SEPARATOR not in key}
    for spec in specs:
        own = f"{spec.label}{SEPARATOR}"
        mine = {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
        rules = registry.module(spec.params.name).merge_rules(anatomy, spec.params, {**plain, **mine})
        for name, rule in rules.items():
            combined[name] = _after(combined[name], rule) if name in combined else rule
    return combined


def _after(first: MergeRule, second: MergeRule) -> MergeRule:
    if second.replaces:
        first, second = second, first
    kind = first.kind if first.kind != "change" else second.kind

    def apply(base: Tensor | None) -> Tensor:
        return second.apply(first.apply(base))

    return MergeRule(apply, kind, first.replaces)


def attach_parts(model: nn.Module, anatomy: Anatomy, specs: Iterable[PartSpec]) -> Attachment:
    """Attach every part, one after the other, and put gates where they are wanted.

    Raises:
        UserError: two parts want the same place, or a part takes no gate.
    """
    from peftcli.protocol.composite_attachment import compose

    return compose(model, anatomy, list(specs))
