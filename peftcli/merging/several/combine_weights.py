"""Several adapters of any mergeable methods as one change of the base's weights, one tensor at a time.

Each adapter's rules give its change of a tensor; the changes are combined as the type says, and added to the base. In
memory are the tensor and one change of it for each adapter. Task heads and modules trained whole are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from peftcli.errors import UserError
from peftcli.merging.low_rank.nearest_pair import below_rank, spectrum
from peftcli.merging.run_to_merge import RunToMerge, beneath, placed, whole_tensors
from peftcli.merging.several.agreeing_runs import averages
from peftcli.merging.several.combination import Combination
from peftcli.merging.several.combine_tensors import combine_tensors, draws_of
from peftcli.protocol.method import MergeRule, MergeStep, RowsChange
from peftcli.protocol.registry import registry


def combine_weights(runs: Sequence[RunToMerge], how: Combination) -> RunToMerge:
    """Return one run that changes the weights as the combination of several does.

    Args:
        runs: runs that agree (`refuse_disagreeing`), of methods that merge.
        how: the combination, its type decided; not `cat`.

    Raises:
        UserError: the modules trained whole differ, or the result is to be cut to a rank and none is given.
    """
    if how.cut and how.rank is None:
        raise UserError(
            f"{how.name} of adapters other than LoRA needs a rank: their changes have none of their own",
            suggestion="add --rank 16",
        )
    parts: dict[str, list[tuple[float, MergeRule]]] = {}
    names = []
    for run, weight in zip(runs, how.weights, strict=True):
        assert run.adapter is not None  # refuse_disagreeing
        params, state = run.adapter.params, run.adapter.state
        own = registry.method(params.name).merge_rules(run.anatomy, params, state)
        rules = beneath(own, {name: state[name] for name in whole_tensors(run.model, state)})
        names.append(frozenset(rules))
        for name, rule in rules.items():
            parts.setdefault(name, []).append((weight, rule))
    whole = averages(runs, how.weights, names)
    rules = {name: _combined_rule(name, found, how) for name, found in parts.items()}
    rules |= {name: placed(value) for name, value in whole.items() if name not in rules}
    shapes = {name: value.shape for name, value in runs[0].model.named_parameters() if value.ndim == 2}
    notes = below_rank(how.rank or 1, {name: min(shapes[name]) for name in parts if name in shapes})
    return replace(runs[0], adapter=None, combined=rules, parts=tuple(runs), notes=[*runs[0].notes, *notes])


def _combined_rule(name: str, parts: list[tuple[float, MergeRule]], how: Combination) -> MergeRule:
    """Return the rule that adds the combination of several rules' changes to a tensor."""
    weights = [weight for weight, _ in parts]

    def apply(base: Tensor | None) -> Tensor:
        if base is None:
            raise ValueError(f"{name}: a combined rule changes a tensor that the base must have")
        if how.pruning is None and not how.cut:
            return _summed(base, [(weight, rule.apply) for weight, rule in parts])
        changes = [rule.apply(base.clone()).sub_(base).contiguous() for _, rule in parts]
        change = combine_tensors(changes, weights, how, draws_of(name, how.seed))
        if not how.cut or change.ndim < 2:
            return base.add_(change)
        assert how.rank is not None  # combine_weights
        one = change.ndim == 2  # else of experts, each of which is cut by itself
        for own, matrix in zip([base] if one else base, [change] if one else change, strict=True):
            a, b = spectrum(matrix.contiguous()).pair(how.rank)
            own.addmm_(b, a)
        return base

    kinds = [rule.kind for _, rule in parts]
    step = MergeStep(apply, rows=_combined_rows(parts, how))
    return MergeRule(apply, "untie" if "untie" in kinds else "change", steps=(step,))


def _combined_rows(parts: list[tuple[float, MergeRule]], how: Combination) -> RowsChange | None:
    """Return the same for rows of one expert; None where what is pruned or cut depends on the whole tensor."""
    known = [(weight, change) for weight, rule in parts if (change := rule.on_rows()) is not None]
    if how.pruning is not None or how.cut or len(known) < len(parts):
        return None

    def apply(expert: int, start: int, rows: Tensor) -> Tensor:
        return _summed(rows, [(weight, partial(change, expert, start)) for weight, change in known])

    return apply


def _summed(base: Tensor, parts: Sequence[tuple[float, Callable[[Tensor], Tensor]]]) -> Tensor:
    """Return the base with the weighted sum of its changes."""
    total = base.clone()
    for weight, apply in parts:
        total.add_(apply(base.clone()).sub_(base), alpha=weight)
    return total
