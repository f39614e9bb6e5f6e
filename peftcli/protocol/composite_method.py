"""The method of a composition: several methods on one model as one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from peftcli.protocol.combining import Ask, answers_for_parts
from peftcli.protocol.composition import SEPARATOR, CompositeParams
from peftcli.protocol.folding import rule_of
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


@answers_for_parts(Method)
class CompositeMethod(Method[CompositeParams]):
    """A method made of others: its hyper-parameters name the parts, which are attached in order and trained together.

    Args:
        info: of the composition.
    """

    def __init__(self, info: MethodInfo) -> None:
        self.info = info

    def asks(self, hook: str, *args: Any, **kwargs: Any) -> Mapping[str, Ask]:
        """Return what asks each part's method, with the part's hyper-parameters in place of the composition's."""
        whole = next(value for value in (*args, *kwargs.values()) if isinstance(value, CompositeParams))
        return {spec.label: partial(_ask, hook, whole, spec.params) for spec in whole.specs}

    def named(self, label: str, text: str) -> str:
        """Return a part's reason with its label in front."""
        return f"{label}: {text}"

    def attach(self, model: nn.Module, anatomy: Anatomy, params: CompositeParams) -> Attachment:
        """Attach every part, one after the other, and put gates where they are wanted.

        Raises:
            UserError: two parts want the same place, or a part takes no gate.
        """
        from peftcli.protocol.attach_parts import attach_parts

        return attach_parts(model, anatomy, params.specs)

    def why_not_identity(self, params: CompositeParams) -> str | None:
        """Return why the first part that does so changes the base's outputs before it is trained."""
        reasons = (
            (spec.label, registry.method(spec.params.name).why_not_identity(spec.params)) for spec in params.specs
        )
        return next((f"the part {label}: {reason}" for label, reason in reasons if reason), None)

    def why_not_mergeable(self, params: CompositeParams) -> str | None:
        """Return why the composition does not fold into base weights: its first part that does not, or its gates."""
        if self.info.unmergeable is not None:
            return self.info.unmergeable
        for spec in params.specs:
            if spec.gated:
                return (
                    f"the part {spec.label} is gated: its change depends on the input; keep the adapter beside its "
                    "base, or train without gates"
                )
            reason = registry.method(spec.params.name).why_not_mergeable(spec.params)
            if reason:
                return f"the part {spec.label} does not merge: {reason}"
        return None

    def merge_rules(
        self, anatomy: Anatomy, params: CompositeParams, state: Mapping[str, Tensor]
    ) -> dict[str, MergeRule]:
        """Return the rules of all parts; where two change one tensor, in the order of the parts.

        What replaces a tensor comes first and what scales its input last, as on the live model.
        """
        combined: dict[str, MergeRule] = {}
        plain = {key: value for key, value in state.items() if SEPARATOR not in key}
        for spec in params.specs:
            start = f"{spec.label}{SEPARATOR}"
            own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            rules = registry.method(spec.params.name).merge_rules(anatomy, spec.params, {**plain, **own})
            for name, rule in rules.items():
                combined[name] = _after(combined[name], rule) if name in combined else rule
        return combined


def _ask(hook: str, whole: CompositeParams, own: MethodParams, *args: Any, **kwargs: Any) -> Any:
    """Ask the method that `own` belongs to, with `own` in the place of `whole`."""
    ask = getattr(registry.method(own.name), hook)
    of_part = {key: own if value is whole else value for key, value in kwargs.items()}
    return ask(*(own if value is whole else value for value in args), **of_part)


def _after(first: MergeRule, second: MergeRule) -> MergeRule:
    kind = first.kind if first.kind != "change" else second.kind
    return rule_of([*first.in_steps(), *second.in_steps()], kind, first.replaces or second.replaces)
