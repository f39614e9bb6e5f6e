"""Any change of weights as a plain LoRA: each changed matrix by the nearest pair, one matrix in memory at a time.

All pairs have one rank (that of a smaller matrix is its shorter side) and the scale 1, because servers read a single
rank and alpha. What is no matrix of a linear, a Conv1D or a table has no place in a plain LoRA: biases, norms,
parameters of experts. Task heads and `modules_to_save` stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.merging.low_rank.nearest_pair import Spectrum, below_rank, spectrum, widened
from peftcli.merging.low_rank.with_lora import EMBEDDING, LINEAR, with_lora
from peftcli.merging.merge_plan import MergedTensor, plan_merge
from peftcli.merging.run_to_merge import RunToMerge, whole_tensors
from peftcli.models.module_view import Kind, module_kind
from peftcli.models.weights.tensor_source import Source
from peftcli.shown_text import some_of

_ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Wanted:
    """How close the LoRA is to be.

    Args:
        rank: of every pair; None where `keep` decides.
        keep: share of the squared norm of each matrix's change that its pair keeps.
        leave_out: leave out changes that a plain LoRA cannot hold, instead of refusing them.
    """

    rank: int | None = None
    keep: float | None = None
    leave_out: bool = False

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.keep is None):
            both = self.rank is not None
            raise UserError(
                "--rank and --keep exclude each other" if both else "a plain LoRA needs --rank or --keep",
                suggestion="--rank 16 sets the rank; --keep 0.95 takes the smallest that keeps 95% of each change",
            )
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UserError(f"--keep {self.keep:g} is not above 0 and at most 1", suggestion="such as --keep 0.95")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"--rank {self.rank} is no rank", suggestion="choose 1 or more")


@dataclass(frozen=True)
class PlainLora:
    """A LoRA in the place of another change.

    Args:
        run: with the LoRA as its adapter.
        rank: the largest of a pair.
        kept: share of the squared norm of all changes of matrices that the pairs keep.
        least_kept: the same of the matrix that keeps least.
        least_module: the module of that matrix.
        matrices: how many pairs there are.
        left_out: parameters whose change is left out.
    """

    run: RunToMerge
    rank: int
    kept: float
    least_kept: float
    least_module: str
    matrices: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A changed matrix: its tensor in the plan, its module, and the module's kind."""

    tensor: MergedTensor
    module: str
    kind: Kind

    @property
    def largest_rank(self) -> int:
        """The shorter side."""
        return min(self.tensor.planned.shape)

    def spectrum(self) -> Spectrum:
        """Return the singular values of the change, as (out, in)."""
        base, rule = self.tensor.read_base(), self.tensor.rule
        assert base is not None and rule is not None  # _places
        merged = rule.apply(base.clone())
        noise = float(torch.linalg.vector_norm(merged, dtype=torch.float64) * _ROUNDING) ** 2
        change = merged.sub_(base)
        return spectrum(change if self.kind == "linear" else change.T.contiguous(), noise)


@dataclass(frozen=True)
class LoraPlan:
    """What will become pairs; no weights are read yet.

    Args:
        run: with an adapter, or a combination.
        wanted: how close the LoRA is to be.
        places: the changed matrices.
        left_out: parameters whose change is left out.
    """

    run: RunToMerge
    wanted: Wanted
    places: tuple[_Place, ...]
    left_out: tuple[str, ...]


def plan_lora(run: RunToMerge, tensors: Mapping[str, Source], wanted: Wanted) -> LoraPlan:
    """Return what of a run's change becomes pairs.

    Args:
        run: with an adapter, or a combination.
        tensors: the base's, by their names in its files.
        wanted: how close.

    Raises:
        UserError: something that changed is no matrix, nothing is, the rank is above all matrices, or one of two tied
            tables changes alone although both were trained whole.
    """
    for one in run.parts or (run,):
        if alone := [name for name, rule in one.rules().items() if rule.kind == "untie" and rule.replaces]:
            raise UserError(
                f"{alone[0]} is trained whole, and changed apart from the table that it is tied to, which a plain LoRA "
                "cannot hold",
                suggestion="fold the run into the base with peft merge",
            )
    rules, whole = run.rules(), set(_whole(run))
    plan = plan_merge(run.model, tensors, rules, torch.float32)
    places, others = [], []
    for tensor in plan.outputs:
        name = tensor.live_name or tensor.planned.name
        if tensor.rule is None or name in whole:
            continue
        module, _, parameter = name.rpartition(".")
        kind = module_kind(run.model.get_submodule(module)) if tensor.live_name else None  # a piece of a parameter
        if kind is None or parameter != "weight" or tensor.source is None or name not in rules:
            others.append(name)
        else:
            places.append(_Place(tensor, module, kind))
    shown = some_of(others, 3)
    if not places:
        raise UserError(
            f"a plain LoRA changes matrices, and this run changes none{f', only {shown}' if shown else ''}",
            suggestion="fold it into the base with peft merge",
        )
    if others and not wanted.leave_out:
        raise UserError(
            f"a plain LoRA cannot hold the changes of {shown}",
            suggestion="fold the run into the base with peft merge, or leave these changes out with --leave-out",
        )
    largest = max(place.largest_rank for place in places)
    if wanted.rank is not None and wanted.rank > largest:
        raise UserError(
            f"--rank {wanted.rank} is above the rank of every changed matrix",
            suggestion=f"the largest useful rank is {largest}",
        )
    return LoraPlan(run, wanted, tuple(places), tuple(others))


def plain_lora(plan: LoraPlan) -> PlainLora:
    """Return the nearest LoRA to what a run changes; reads one tensor of the base at a time."""
    run, wanted, places = plan.run, plan.wanted, plan.places
    rank = wanted.rank or max(1, *(place.spectrum().rank_for(wanted.keep or 1.0) for place in places))
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    shares: dict[str, tuple[float, float]] = {}
    for place in places:
        own = place.spectrum()
        ranks[place.module] = min(rank, place.largest_rank)
        names = EMBEDDING if place.kind == "embedding" else LINEAR
        a, b = widened(*own.pair(rank), ranks[place.module])
        state |= {f"{place.module}.{names[0]}": a, f"{place.module}.{names[1]}": b}
        shares[place.module] = own.kept(rank), float(own.energies.sum())
    least = min(shares, key=lambda module: _share(*shares[module]))
    of_adapter = run if run.adapter is not None else run.parts[0]  # whose record the LoRA's is made from
    made = with_lora(of_adapter, list(ranks), ranks, state | _whole(run))
    kept, total = (sum(column) for column in zip(*shares.values(), strict=True))
    uncut = [] if run.parts else below_rank(wanted.rank or 1, ranks)  # a combination has told it
    return PlainLora(
        run=replace(made, notes=[*run.notes, *uncut], method=run.method),
        rank=max(ranks.values()),
        kept=_share(kept, total),
        least_kept=_share(*shares[least]),
        least_module=least,
        matrices=len(places),
        left_out=plan.left_out,
    )


def _whole(run: RunToMerge) -> dict[str, Tensor]:
    """Return the task head and `modules_to_save` of a run, with what its method changes of them."""
    rules = run.rules()
    if run.adapter is None:  # a combination: its averages are rules that place a tensor
        placed = (name for name, rule in rules.items() if rule.kind == "add")
        return {name: rules[name].apply(None) for name in placed}
    meta, state = run.adapter.meta, run.adapter.state
    below = tuple(f"{path}." for path in (*meta.head, *meta.modules_to_save))
    names = [name for name in whole_tensors(run.model, state) if below and name.startswith(below)]
    return {name: rules[name].apply(None) for name in names}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
