"""Several LoRA adapters of one base as one LoRA adapter, which is merged, verified and attached as any other.

- `cat`: the factors side by side. The sum of low-rank products is one product of the concatenated factors: exact.
- `svd`: that, cut to a rank. The change is never built.
- `linear`, `ties`, `dare_*`, `magnitude_prune`: A and B each for itself, with the roots of weight and scale. Their
  product has cross terms between the adapters; HF peft defines it so.
- `*_svd`: the whole change of one matrix after the other, cut to a rank.

Task heads and modules trained whole are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from peftcli.adapters.initial_pairs import stack_initial
from peftcli.errors import UserError
from peftcli.layers.expert_parts.expert_delta import expert_factors, joined_factors
from peftcli.merging.low_rank.nearest_pair import below_rank, spectrum, widened
from peftcli.merging.low_rank.with_lora import EMBEDDING, LINEAR, with_lora
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.merging.several.agreeing_runs import averages
from peftcli.merging.several.combination import Combination
from peftcli.merging.several.combine_tensors import combine_tensors, draws_of
from peftcli.methods.lora import LoraParams
from peftcli.models.experts.named_experts import ExpertChoice, by_key
from peftcli.models.targets.target import Target
from peftcli.models.targets.target_modules import resolve_targets
from peftcli.protocol.folding import tensors_by_key


@dataclass(frozen=True)
class _Pair:
    """One adapter's factors at one place: A (r, d_in), B (d_out, r), its scale s, its weight, an expert's number."""

    a: Tensor
    b: Tensor
    scale: float
    weight: float
    expert: int | None = None


def why_no_factors(run: RunToMerge) -> str | None:
    """Return why a run's adapter is no sum of low-rank products, or None."""
    assert run.adapter is not None  # refuse_disagreeing
    params = run.adapter.params
    if not isinstance(params, LoraParams):
        return f"{params.name} has no LoRA factors"
    if params.use_dora or params.bias != "none":
        return f"{'use_dora' if params.use_dora else 'bias'}: the change is no sum of low-rank products"
    return None


def overlapping(runs: Sequence[RunToMerge]) -> dict[Path, str]:
    """Return the runs that change a role of a fused projection which another changes whole, each with the reason."""
    found = [(run.directory, target) for run in runs if run.adapter for target in run.adapter.meta.targets]
    whole = {target.module for _, target in found if target.slice is None}
    return {
        directory: f"{target.key} is a part of {target.module}, which another run changes whole"
        for directory, target in found
        if target.slice is not None and target.module in whole
    }


def combine_factors(runs: Sequence[RunToMerge], how: Combination) -> RunToMerge:
    """Return one run whose LoRA adapter is the combination of several.

    Args:
        runs: runs that agree (`refuse_disagreeing`), have factors (`why_no_factors`), and no `overlapping` ones.
        how: the combination, its type decided.

    Raises:
        UserError: the ranks differ where factors are combined, or the modules trained whole do.
    """
    first = runs[0]
    pairs = _pairs(runs, how.weights)
    entries = _entries(runs)
    numbers = _expert_numbers(runs)
    targets = resolve_targets(first.model, first.anatomy, entries, experts=ExpertChoice(numbers=numbers))
    limit = how.rank or max(len(pair.a) for found in pairs.values() for pair in found)
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for target in targets:
        found = pairs.get(target.key)
        if target.experts is not None:
            every = sorted(numbers or range(target.experts.experts))
            a, b, ranks[target.key] = _of_experts(target, found or [], every, how, limit)
        else:
            a, b = _combined(target.key, found, how, limit) if found else _nothing(first, target)
            ranks[target.key] = len(a)
        names = EMBEDDING if target.kind == "embedding" else LINEAR
        state |= {f"{target.key}.{names[0]}": a.contiguous(), f"{target.key}.{names[1]}": b.contiguous()}
    state |= averages(runs, how.weights)
    changed = {key: rank for key, rank in ranks.items() if key in pairs}
    made = with_lora(first, entries, ranks, state, numbers)
    return replace(made, notes=[*first.notes, *below_rank(how.rank or 1, changed)])


def _expert_numbers(runs: Sequence[RunToMerge]) -> set[int] | None:
    """Return the experts that any of the runs changes; None for all, or where none is changed."""
    numbers: set[int] = set()
    for run in runs:
        assert run.adapter is not None and isinstance(run.adapter.params, LoraParams)  # why_no_factors
        if any(target.kind == "experts" for target in run.adapter.meta.targets):
            if run.adapter.params.experts is None:
                return None
            numbers |= run.adapter.params.experts
    return numbers or None


def _of_experts(
    target: Target, pairs: Sequence[_Pair], numbers: Sequence[int], how: Combination, limit: int
) -> tuple[Tensor, Tensor, int]:
    """Return A and B of every expert's combined change, joined, and the rank of each: the largest among them."""
    role = target.experts
    assert role is not None  # kind experts
    made = []
    for number in numbers:
        own = [pair for pair in pairs if pair.expert == number]
        nothing = torch.zeros(1, role.in_features), torch.zeros(role.out_features, 1)
        made.append(_combined(f"{target.key}.{number}", own, how, limit) if own else nothing)
    rank = max(len(a) for a, _ in made)
    return *joined_factors([widened(a, b, rank) for a, b in made]), rank


def _pairs(runs: Sequence[RunToMerge], weights: Sequence[float]) -> dict[str, list[_Pair]]:
    """Return the pairs at each place, those of PiSSA and OLoRA with the pair that they subtract."""
    found: dict[str, list[_Pair]] = {}
    for run, weight in zip(runs, weights, strict=True):
        assert run.adapter is not None and isinstance(run.adapter.params, LoraParams)  # why_no_factors
        params, state = run.adapter.params, run.adapter.state
        roles = {linear.key: linear.role for linear in run.anatomy.linears}
        stacked = by_key(run.anatomy.experts)
        whole = stack_initial(state)
        for names in (LINEAR, EMBEDDING):
            for key, pair in tensors_by_key(whole, names).items():
                a, b = (pair[name].float() for name in names)
                if key in stacked:
                    numbers = sorted(params.experts or range(stacked[key].experts))
                    rank = len(a) // len(numbers)
                    scale = params.scale_of(stacked[key].role, key, rank)
                    for number, *factors in zip(numbers, *expert_factors(a, b, rank), strict=True):
                        found.setdefault(key, []).append(_Pair(factors[0], factors[1], scale, weight, number))
                    continue
                rank = len(state[f"{key}.{names[0]}"])
                scale = params.scale_of(roles.get(key), key, rank)
                found.setdefault(key, []).append(_Pair(a, b, scale, weight))
    return found


def _combined(place: str, pairs: list[_Pair], how: Combination, limit: int) -> tuple[Tensor, Tensor]:
    """Return A and B of the combined change of one place, every scale and weight in them."""
    if how.name in ("cat", "svd"):
        a = torch.cat([pair.a for pair in pairs])
        b = torch.cat([pair.weight * pair.scale * pair.b for pair in pairs], dim=1)
        return compressed(a, b, limit if how.cut else None)
    draws = draws_of(place, how.seed)
    if how.cut:
        changes = [pair.scale * (pair.b @ pair.a) for pair in pairs]
        weights = [pair.weight for pair in pairs]
        return spectrum(combine_tensors(changes, weights, how, draws)).pair(limit)
    if len({len(pair.a) for pair in pairs}) > 1:
        ranks = ", ".join(str(len(pair.a)) for pair in pairs)
        instead = "cat" if how.name == "linear" else f"{how.name}_svd"
        raise UserError(
            f"the adapters have the ranks {ranks} at {place}, and {how.name} combines factors of one rank",
            suggestion=f"use --combination-type {instead}, which takes any ranks",
        )
    roots = [math.sqrt(abs(pair.weight * pair.scale)) for pair in pairs]
    signed = [math.copysign(root, pair.weight * pair.scale) for root, pair in zip(roots, pairs, strict=True)]
    a = combine_tensors([pair.a.clone() for pair in pairs], signed, how, draws)
    return a, combine_tensors([pair.b.clone() for pair in pairs], roots, how, draws)


def compressed(a: Tensor, b: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """Return factors of at most `rank`, and never of more than the matrix itself has.

    The singular values are those of the small matrix between two QR decompositions: the change is never built.
    """
    limit = min(a.shape[1], b.shape[0])
    wanted = limit if rank is None else min(rank, limit)
    if len(a) <= wanted:
        return a, b
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T)
    root = values[:wanted].sqrt()
    return root[:, None] * (right[:wanted] @ q_a.T), (q_b @ left[:, :wanted]) * root


def _nothing(run: RunToMerge, target: Target) -> tuple[Tensor, Tensor]:
    """Return a pair that changes nothing, for a place that a role names but no adapter has."""
    for linear in run.anatomy.linears:
        if linear.key == target.key:
            return torch.zeros(1, linear.in_features), torch.zeros(linear.out_features, 1)
    raise UserError(f"{target.module} is changed by no adapter")


def _entries(runs: Sequence[RunToMerge]) -> list[str]:
    """Return target entries that cover all adapters: paths, and roles for slices of fused projections."""
    found: dict[str, None] = {}
    for run in runs:
        assert run.adapter is not None  # refuse_disagreeing
        for target in run.adapter.meta.targets:
            found[target.role if target.slice and target.role else target.module] = None
    return list(found)
