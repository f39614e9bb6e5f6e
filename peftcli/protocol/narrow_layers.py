"""Layers that no change fits: left out, with a note, where the recipe names a group and not the layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from torch import nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.models.anatomy import Anatomy
from peftcli.models.experts.left_out_experts import experts_note
from peftcli.models.targets.target import Target, short_path
from peftcli.models.targets.target_entries import is_group_entry, listed
from peftcli.models.targets.target_modules import left_out_of_groups
from peftcli.recipe.method_params import MethodParams, TargetedParams


def is_group(entries: Sequence[str] | str) -> bool:
    """Tell whether an entry of `target_modules` is there that stands for several kinds of layers.

    Such are `all-linear`, a branch (`ffn`), and a regular expression.
    """
    return any(is_group_entry(entry, entries) for entry in listed(entries))


def notes_on_left_out(model: nn.Module, anatomy: Anatomy, params: MethodParams, targets: Sequence[Target]) -> list[str]:
    """Return notes on what a group lacks: linears that a forward pass has no use of a change for, and experts.

    Args:
        targets: that the method chose.
    """
    if not isinstance(params, TargetedParams):
        return []
    names: dict[str, dict[str, None]] = {}
    counts: Counter[str] = Counter()
    for path, reason in left_out_of_groups(model, anatomy, params.target_modules).items():
        names.setdefault(reason, {})[short_path(path)] = None
        counts[reason] += 1
    notes = [_note(", ".join(short), reason, counts[reason]) for reason, short in names.items()]
    experts = experts_note(model, anatomy, params.target_modules, targets)
    return [*notes, experts] if experts else notes


def without_narrow(
    model: nn.Module, targets: Sequence[Target], rank_of: Callable[[Target], int], entries: Sequence[str] | str
) -> tuple[list[Target], list[str]]:
    """Return the targets without those that a group brought along and whose matrix is below the rank, and notes.

    A layer that is named itself stays, and is refused by its method; so do all, where none is wide enough.

    Args:
        rank_of: the rank that the recipe gives a target.
        entries: `target_modules`.
    """
    narrow: dict[str, str] = {}
    kinds: Counter[tuple[str, str]] = Counter()
    for target in targets:
        if target.kind in ("embedding", "experts") or _is_named(target, entries):
            continue
        view = BaseLinear(model.get_submodule(target.module), target.slice)
        rank = rank_of(target)
        if rank > min(view.out_features, view.in_features):
            size = f"rank {rank} is above its {view.out_features} x {view.in_features}"
            narrow[target.key] = size
            kinds[target.role or short_path(target.module), size] += 1
    kept = [target for target in targets if target.key not in narrow]
    if not kept:
        return list(targets), []
    return kept, [_note(name, why, count) for (name, why), count in kinds.items()]


def _note(name: str, why: str, count: int) -> str:
    layers = "1 layer" if count == 1 else f"{count} layers"
    return f"target_modules leaves {name} out ({layers}): {why}"


def _is_named(target: Target, entries: Sequence[str] | str) -> bool:
    """Tell whether some entry names the target by its role or its module's name."""
    named = [entry for entry in listed(entries) if not is_group_entry(entry, entries)]
    return any(entry == target.role or target.module == entry or target.module.endswith(f".{entry}") for entry in named)
