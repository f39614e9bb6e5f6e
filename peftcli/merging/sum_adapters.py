"""Several LoRA adapters of one base as one: the weighted sum of their changes, exact or cut to a given rank.

The sum of low-rank products is a low-rank product of the concatenated factors, so the result is a LoRA adapter like any
other: it is merged, verified and attached by the same code. Task heads and modules trained whole are averaged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from peftcli.adapters.format import SavedAdapter, base_of
from peftcli.errors import UserError
from peftcli.merging.run_to_merge import RunToMerge, whole_tensors
from peftcli.methods.lora import LoraParams
from peftcli.models.target_modules import resolve_targets
from peftcli.protocol.folding import tensors_by_key

_PAIRS = (
    ("lora_A.weight", "lora_B.weight", 1.0),
    ("initial_A", "initial_B", -1.0),  # PiSSA subtracts the pair that it started from
)
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


def sum_adapters(runs: Sequence[RunToMerge], weights: Sequence[float], rank: int | None = None) -> RunToMerge:
    """Return one run whose adapter is the weighted sum of several.

    Args:
        runs: runs with LoRA adapters of one base and task.
        weights: one for each.
        rank: cut every change to this rank by its singular values; None keeps the exact sum.

    Raises:
        UserError: weights and runs do not match, or the runs differ in base, task or labels, or are no plain LoRA.
    """
    _refuse_misfits(runs, weights)
    first = runs[0]
    changes = _changes(runs, weights)
    entries = _entries(runs)
    targets = resolve_targets(first.model, first.anatomy, entries)
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for target in targets:
        a, b = changes.get(target.key) or _nothing(first, target.key, target.module)
        a, b = _compressed(a, b, rank)
        names = _EMBEDDING if target.kind == "embedding" else _PAIRS[0][:2]
        state |= {f"{target.key}.{names[0]}": a, f"{target.key}.{names[1]}": b}
        ranks[target.key] = len(a)
    state |= _averages(runs, weights)
    patterns = {f"^{re.escape(key)}": size for key, size in ranks.items()}
    largest = max(ranks.values())
    params = LoraParams(
        r=largest,
        lora_alpha=largest,
        target_modules=entries,
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),  # alpha = rank: the factors hold the scales
        modules_to_save=list(first.adapter.meta.modules_to_save) or None if first.adapter else None,
    )
    assert first.adapter is not None  # _refuse_misfits
    words = ", ".join(f"{weight:g} x {run.directory}" for weight, run in zip(weights, runs, strict=True))
    notes = [*first.notes, f"the sum of {len(runs)} adapters: {words}"]
    if rank is not None:
        notes.append(f"cut to rank {rank} by singular values")
    return replace(first, adapter=SavedAdapter(params, state, first.adapter.meta), notes=notes)


def _refuse_misfits(runs: Sequence[RunToMerge], weights: Sequence[float]) -> None:
    if len(weights) != len(runs):
        raise UserError(
            f"{len(runs)} runs and {len(weights)} weights",
            suggestion="give one weight for each run: --weights 0.7,0.3",
        )
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise UserError("weights must be numbers, and not all of them zero")
    first = runs[0]
    for run in runs:
        adapter = run.adapter
        if adapter is None or not isinstance(adapter.params, LoraParams):
            raise UserError(f"{run.directory} is no LoRA run: only LoRA adapters can be summed")
        if adapter.params.use_dora or adapter.params.bias != "none":
            option = "use_dora" if adapter.params.use_dora else "bias"
            raise UserError(f"{run.directory} uses {option}: its change is no sum of low-rank products")
        for what, own, other in (
            ("task", run.recipe.task, first.recipe.task),
            ("labels", run.labels, first.labels),
        ):
            if own != other:
                raise UserError(f"{run.directory} and {first.directory} differ in {what}: {own} and {other}")
        if not _same_base(run, first):
            names = dict.fromkeys((run.spec.name_or_path, first.spec.name_or_path))
            of = " and ".join(names) if len(names) > 1 else f"{next(iter(names))}, whose files changed in between"
            raise UserError(
                f"{run.directory} and {first.directory} differ in base: they were trained on {of}",
                suggestion="adapters of one base can be summed: train one of them again",
            )


def _same_base(run: RunToMerge, other: RunToMerge) -> bool:
    """Return whether two adapters were trained on the same weights, wherever they lay; by name if that is not known."""
    assert run.adapter is not None and other.adapter is not None  # _refuse_misfits
    own, others = base_of(run.adapter.meta), base_of(other.adapter.meta)
    if own is None or others is None:
        return run.spec.name_or_path == other.spec.name_or_path
    return own.same_files(others)


def _changes(runs: Sequence[RunToMerge], weights: Sequence[float]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A (r, d_in) and B (d_out, r) of the summed change by key, every scale and weight in B."""
    factors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for run, weight in zip(runs, weights, strict=True):
        assert run.adapter is not None and isinstance(run.adapter.params, LoraParams)  # _refuse_misfits
        params, state = run.adapter.params, run.adapter.state
        roles = {linear.key: linear.role for linear in run.anatomy.linears}
        for name_a, name_b, sign in (*_PAIRS, (*_EMBEDDING, 1.0)):
            for key, pair in tensors_by_key(state, (name_a, name_b)).items():
                scale = params.scale_of(roles.get(key), key, len(pair[name_a]))
                all_a, all_b = factors.setdefault(key, ([], []))
                all_a.append(pair[name_a].float())
                all_b.append(sign * weight * scale * pair[name_b].float())
    return {key: (torch.cat(a), torch.cat(b, dim=1)) for key, (a, b) in factors.items()}


def _compressed(a: Tensor, b: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
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


def _nothing(run: RunToMerge, key: str, module: str) -> tuple[Tensor, Tensor]:
    """Return a pair that changes nothing, for a place that a role names but no adapter has."""
    for linear in run.anatomy.linears:
        if linear.key == key:
            return torch.zeros(1, linear.in_features), torch.zeros(linear.out_features, 1)
    raise UserError(f"{module} is changed by no adapter")


def _entries(runs: Sequence[RunToMerge]) -> list[str]:
    """Return target entries that cover all adapters: paths, and roles for slices of fused projections."""
    found: dict[str, None] = {}
    for run in runs:
        assert run.adapter is not None
        for target in run.adapter.meta.targets:
            found[target.role if target.slice and target.role else target.module] = None
    return list(found)


def _averages(runs: Sequence[RunToMerge], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of heads and of modules trained whole.

    Raises:
        UserError: the runs trained different modules whole.
    """
    states = [run.adapter.state for run in runs if run.adapter is not None]
    names = [whole_tensors(run.model, state) for run, state in zip(runs, states, strict=True)]
    if any(set(own) != set(names[0]) for own in names):
        raise UserError("the runs trained different modules whole (modules_to_save), which cannot be averaged")
    if names[0] and not sum(weights):
        raise UserError("the weights sum to zero, and the runs have heads to average")
    shares = [weight / sum(weights) for weight in weights]
    return {
        name: torch.stack([share * state[name].float() for share, state in zip(shares, states, strict=True)]).sum(0)
        for name in names[0]
    }
