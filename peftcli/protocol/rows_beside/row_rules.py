"""Fold trained rows of the vocabulary's tables into the base, beside the rules of any method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftcli.models.anatomy import Anatomy
from peftcli.protocol.folding import rule_of
from peftcli.protocol.method import REPLACES, MergeRule, MergeStep
from peftcli.protocol.registry import registry
from peftcli.protocol.rows_beside.added_rows import ROWS, by_table, tied_to
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn


def folding_rules(
    model: nn.Module, anatomy: Anatomy, params: MethodParams, state: Mapping[str, Tensor]
) -> dict[str, MergeRule]:
    """Return how the base parameters change when an adapter is folded in: by its method, and by its token rows.

    Args:
        model: the base, which may be on the meta device; it says which tables are tied.
        anatomy: its roles.
        params: the hyper-parameters of the training, with the rows by number.
        state: the adapter's tensors by key.

    Raises:
        UserError: the method's rules cannot be computed from these tensors alone.
    """
    own = {key: tensor for key, tensor in state.items() if not key.endswith(ROWS)}
    rules = registry.method(params.name).merge_rules(anatomy, params, own)
    for path, rows in rows_of(state).items():
        step = _put([int(number) for number in by_table(params)[path]], rows)
        for tied in tied_to(model, path):
            name = f"{tied}.weight"
            rule = rules.get(name)
            rules[name] = rule_of([step], "change", False) if rule is None else _before(step, rule)
    return rules


def rows_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's trained rows by the path of their table."""
    return {key.removesuffix(ROWS): tensor for key, tensor in state.items() if key.endswith(ROWS)}


def _before(step: MergeStep, rule: MergeRule) -> MergeRule:
    return rule_of([step, *rule.in_steps()], rule.kind, rule.replaces)


def _put(numbers: list[int], rows: Tensor) -> MergeStep:
    def apply(base: Tensor | None) -> Tensor:
        if base is None:
            raise ValueError("rows are put into a table that the base must have")
        base[numbers] = rows.to(base)
        return base

    return MergeStep(apply, REPLACES)
