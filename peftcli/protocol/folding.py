"""Merge rules from adapter keys: fused slices, transposed weights, and several changes to one tensor.

A method says what happens to a role's own (out, in) weight or (out,) bias in float32; this module knows where that
role lies in the base's tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from peftcli.protocol.method import CHANGES, CHANGES_INPUT, REPLACES, MergeRule, MergeStep, RowsChange

if TYPE_CHECKING:
    from torch import Tensor

    from peftcli.models.anatomy import Anatomy, ExpertRole, FusedSlice, LinearRole

Change = Callable[["Tensor"], "Tensor"]
"""From a role's float32 tensor to the changed one. The argument is the change's own: it may work in place, so that a
merge of a large matrix needs no second one."""


class Folding:
    """Collects the changes of one adapter and gives one `MergeRule` for each base parameter.

    Args:
        anatomy: of the base; says which keys are slices and which weights are stored (in, out).
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._roles: dict[str, LinearRole] = {linear.key: linear for linear in anatomy.linears}
        self._transposed = set(anatomy.transposed)
        self._biases = set(anatomy.biases)
        self._shared = anatomy.shared
        self._steps: dict[str, list[MergeStep]] = {}
        self._replaced: set[str] = set()

    def change_weight(self, key: str, change: Change) -> None:
        """Apply `change` to the weight that an adapter key names: a role's, or a whole module's, as (out, in)."""
        role = self._roles.get(key)
        module = role.module if role else key
        self._append(f"{module}.weight", _on_rows(change, role, module in self._transposed))

    def scale_input(self, key: str, factor: Tensor) -> None:
        """Multiply the input of the module that an adapter key names by `factor`, (in,), before anything else sees it.

        A role of a fused projection shares its input with the others: all their columns are multiplied.
        """
        role = self._roles.get(key)
        module = role.module if role else key
        columns = factor[:, None] if module in self._transposed else factor
        self._append(f"{module}.weight", lambda weight: weight.mul_(columns), CHANGES_INPUT)

    def change_input(self, key: str, change: Change) -> None:
        """Apply `change` to the weight (out, in) of the module that an adapter key names, for a change of its input.

        Args:
            change: from W to the weight that gives for the input as it was what W gives for the changed one.
        """
        role = self._roles.get(key)
        module = role.module if role else key
        self._append(f"{module}.weight", _on_rows(change, None, module in self._transposed), CHANGES_INPUT)

    def change_experts(self, role: ExpertRole, change: RowsChange, stage: int = CHANGES) -> None:
        """Apply `change` to every expert of a 3-D parameter, one expert after the other.

        Args:
            role: says where the parameter is, and how it is stored.
            change: of rows of one expert; features are those of the whole parameter, fused or not.
            stage: when among the changes of all methods.
        """

        def apply(base: Tensor | None) -> Tensor:
            if base is None:
                raise ValueError("this rule changes a tensor that the base must have")
            for expert, weight in enumerate(base.unbind(0)):
                rows = weight.T if role.transposed else weight
                changed = change(expert, 0, rows)
                if changed is not rows:
                    rows.copy_(changed)
            return base

        self._steps.setdefault(role.path, []).append(MergeStep(apply, stage, change))

    def change_expert_biases(self, role: ExpertRole, change: Change) -> None:
        """Apply `change` to the biases (experts, out) of a role's features; nothing where the experts have none."""
        if role.bias is not None:
            self._append(role.bias, _on_features(change, role.slice))

    def change_bias(self, key: str, change: Change) -> None:
        """Apply `change` to the bias that an adapter key names, as (out,)."""
        role = self._roles.get(key)
        self._append(f"{role.module if role else key}.bias", _on_features(change, role.slice if role else None))

    def replace(self, name: str, value: Tensor) -> None:
        """Replace the base parameter `name` by `value`; changes of the same parameter apply to that."""
        self._replaced.add(name)
        # a copy: the next change may work in place, and `value` is the adapter's own
        whole = _of_base(lambda _base: value.float().clone())
        self._steps.setdefault(name, []).append(MergeStep(whole, REPLACES, rows_of(value)))

    def has_bias(self, key: str) -> bool:
        """Return whether the projection that `key` names has a bias."""
        role = self._roles.get(key)
        return f"{role.module if role else key}.bias" in self._biases

    def rules(self) -> dict[str, MergeRule]:
        """Return the rules by name of the base parameter.

        Where several modules have one tensor, a change belongs to the module that it was made at, and its tensor is
        untied; a value that was trained in place is that of all of them.
        """
        alone = {
            name
            for name, steps in self._steps.items()
            if name in self._shared and any(step.stage != REPLACES for step in steps)
        }
        return {
            name: rule_of(steps, "untie" if name in alone else "change", name in self._replaced)
            for name, steps in self._steps.items()
        }

    def _append(self, name: str, change: Change, stage: int = CHANGES) -> None:
        self._steps.setdefault(name, []).append(MergeStep(_of_base(change), stage))


def rows_of(value: Tensor) -> RowsChange | None:
    """Return what puts rows of a whole parameter (experts, out, in) in place of the base's; None for other shapes."""
    if value.ndim != 3:
        return None
    return lambda expert, start, rows: value[expert, start : start + len(rows)].float().clone()


def rule_of(steps: Sequence[MergeStep], kind: Literal["change", "add", "untie"], replaces: bool) -> MergeRule:
    """Return one rule that takes these steps: by stage, then in their order.

    Of several changes of one input, the last is the next to the weight, W (M2 (M1 x)): it is multiplied in first.
    """
    inputs = [step for step in steps if step.stage == CHANGES_INPUT]
    others = [step for step in steps if step.stage != CHANGES_INPUT]
    ordered = (*sorted(others, key=lambda step: step.stage), *reversed(inputs))

    def apply(base: Tensor | None) -> Tensor:
        value = base
        for step in ordered:
            value = step.apply(value)
        assert value is not None  # there is a step
        return value

    return MergeRule(apply, kind, replaces, ordered)


def _on_rows(change: Change, role: LinearRole | None, transposed: bool) -> Change:
    def apply(weight: Tensor) -> Tensor:
        rows = weight.T if transposed else weight  # (out, in)
        if role is None or role.slice is None:
            changed = change(rows)
            return changed.T if transposed else changed
        features = rows.T  # (in, out): slices are of the last axis
        # a copy, even where the slice is whole rows and so contiguous already: the change may work in place
        own = change(role.slice.take(features).T.clone().contiguous())
        role.slice.part(features).copy_(role.slice.split(own.T, role.slice.size))
        return weight

    return apply


def _on_features(change: Change, features: FusedSlice | None) -> Change:
    def apply(bias: Tensor) -> Tensor:
        if features is None:
            return change(bias)
        own = change(features.take(bias).clone())
        features.part(bias).copy_(features.split(own, features.size))
        return bias

    return apply


def _of_base(change: Change) -> Callable[[Tensor | None], Tensor]:
    def apply(base: Tensor | None) -> Tensor:
        if base is None:
            raise ValueError("this rule changes a tensor that the base must have")
        return change(base)

    return apply


def tensors_by_key(state: Mapping[str, Tensor], suffixes: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Group saved tensors by the key they belong to.

    Args:
        state: an adapter's tensors, such as `h.0.attn.c_attn.q.lora_A`.
        suffixes: the tensors of one part, such as `("lora_A", "lora_B")`.

    Returns:
        {key: {suffix: tensor}}, in the order of `state`; tensors with other endings are left out.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        for suffix in suffixes:
            if name.endswith(f".{suffix}"):
                groups.setdefault(name[: -len(suffix) - 1], {})[suffix] = tensor
    return groups


def replacing(anatomy: Anatomy, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
    """Return rules that put each tensor in place of the base parameter of its name."""
    folding = Folding(anatomy)
    for name, value in state.items():
        folding.replace(name, value)
    return folding.rules()
