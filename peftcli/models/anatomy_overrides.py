"""Apply `model.anatomy` of the recipe, where users name roles, to the row of a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from peftcli.errors import Problem, UserError
from peftcli.models.anatomy import BLOCK_ROLES, LINEAR_ROLES
from peftcli.models.families.family_row import BranchRow, FamilyRow, FusedRow, Layout, StackRow
from peftcli.models.module_view import ModuleView, module_kind
from peftcli.suggestions import did_you_mean, nearest

_KINDS: tuple[Literal["attn", "cross_attn", "ffn"], ...] = ("attn", "cross_attn", "ffn")
_LAYOUTS: tuple[Layout, ...] = ("contiguous", "per_head", "per_group")
KEYS = (*LINEAR_ROLES, *BLOCK_ROLES, "layers", "embeddings")
"""The keys of `model.anatomy`. attn, cross_attn and ffn name the module whose output is that of the branch."""


def apply_overrides(row: FamilyRow, overrides: Mapping[str, str | list[str]], view: ModuleView) -> FamilyRow:
    """Return the row with its roles replaced by those of the recipe.

    Args:
        row: of the family, or of the structure.
        overrides: role to a path within a block, or to several. If several roles name one module, it is a fused
            projection with the roles in their usual order; `path@per_head` and `path@per_group` give another layout.

    Raises:
        UserError: roles are unknown, or no block has such a path; names similar ones.
    """
    problems = [_unknown_role(key) for key in overrides if key not in KEYS]
    named = {key: [value] if isinstance(value, str) else list(value) for key, value in overrides.items() if key in KEYS}
    if "embeddings" in named:
        row = replace(row, embeddings="|".join(named["embeddings"]))
        if view.first(view.base_path, row.embeddings) is None:
            problems.append(_missing("embeddings", row.embeddings, _below(view, view.base_path)))
    stacks, placed = [], set[tuple[str, str]]()
    for stack in row.stacks:
        new, used = _override_stack(stack, named, view)
        stacks.append(new)
        placed |= used
    blocks = [path for stack in row.stacks for path in _blocks(view, stack)[:1]]
    candidates = list(dict.fromkeys(name for block in blocks for name in _below(view, block)))
    for key in named:
        if key in ("embeddings", "layers"):
            continue
        problems += [_missing(key, path, candidates) for path in named[key] if (key, path) not in placed]
    if problems:
        raise UserError(problems)
    return replace(row, stacks=tuple(stacks))


def _override_stack(
    stack: StackRow, named: Mapping[str, list[str]], view: ModuleView
) -> tuple[StackRow, set[tuple[str, str]]]:
    """Return the stack with the named roles that its blocks have, and those (role, path)."""
    blocks = _blocks(view, stack)
    used: set[tuple[str, str]] = set()
    linears: dict[str, tuple[str, ...]] = {}
    exits: dict[str, str] = {}
    by_module: dict[str, list[str]] = {}
    for key, paths in named.items():
        if key in ("embeddings", "layers"):
            continue
        here = [path for path in paths if any(view.first(block, path.split("@")[0]) for block in blocks)]
        used |= {(key, path) for path in here}
        if here and key in BLOCK_ROLES:
            exits[key] = "|".join(here)
        elif here:
            linears[key] = tuple(here)
            for path in here:
                by_module.setdefault(path, []).append(key)
    fused: dict[str, FusedRow] = {}
    for path, roles in by_module.items():
        if len(roles) > 1:
            name, _, layout = path.partition("@")
            ordered = tuple(role for role in ("attn.q", "attn.k", "attn.v", "ffn.gate", "ffn.up") if role in roles)
            fused[name] = FusedRow(ordered, layout if layout in _LAYOUTS else "contiguous")
            for role in roles:
                linears.pop(role, None)
    taken = {role for row in fused.values() for role in row.roles} | set(linears)
    kept_fused = {path: row for path, row in stack.fused.items() if not taken & set(row.roles)}
    kept = {role: spec for role, spec in stack.linears.items() if role not in taken}
    branches = [replace(branch, exit=exits.get(branch.kind, branch.exit)) for branch in stack.branches]
    there = {branch.kind for branch in branches}
    branches += [BranchRow(kind, exits[kind], exits[kind]) for kind in _KINDS if kind in exits and kind not in there]
    return replace(stack, linears={**kept, **linears}, fused={**kept_fused, **fused}, branches=tuple(branches)), used


def _blocks(view: ModuleView, stack: StackRow) -> list[str]:
    """Return the blocks that a row is about."""
    paths = view.expand(stack.layers) if stack.layers else []
    return [path for number, path in enumerate(paths) if stack.numbers is None or number in stack.numbers]


def _below(view: ModuleView, parent: str) -> list[str]:
    """Return the linear and embedding modules within a path, relative to it."""
    start = f"{parent}." if parent else ""
    return [
        name[len(start) :] for name, module in view.modules.items() if name.startswith(start) and module_kind(module)
    ]


def _unknown_role(key: str) -> Problem:
    choice = did_you_mean(nearest(key, KEYS, cutoff=0.4), f"roles: {', '.join(KEYS)}")
    return Problem(f"{key!r} is not a role", key="model.anatomy", suggestion=choice)


def _missing(key: str, path: str, candidates: list[str]) -> Problem:
    near = nearest(path, candidates, most=3, cutoff=0.3) or candidates[:8]
    return Problem(
        f"no block has a module {path!r}",
        key=f"model.anatomy.{key}",
        suggestion=f"nearest: {', '.join(near)}" if near else "the model has no such blocks",
    )
