"""Find the modules that `target_modules` of a recipe names. Every entry must match at least one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.added_modules import is_added
from peftcli.models.anatomy import (
    BLOCK_ROLES,
    EXPERT_ROLES,
    EXPERTS,
    LINEAR_ROLES,
    Anatomy,
    ExpertRole,
    FusedSlice,
    Stack,
)
from peftcli.models.experts.named_experts import ExpertChoice, beyond, named_experts, no_such_parameter, refused
from peftcli.models.module_view import Kind, module_kind
from peftcli.models.trial_forward import NOT_CALLED, passed_over
from peftcli.suggestions import nearest

ALL_LINEAR = "all-linear"
ROLE_WORDS = (*LINEAR_ROLES, *BLOCK_ROLES, *EXPERT_ROLES, EXPERTS, "embeddings", "head", ALL_LINEAR)
"""Entries that are not names of modules."""


@dataclass(frozen=True)
class Target:
    """A module, or a part of one, that a method changes.

    Args:
        role: its role, or None for a module without one, or for a fused module as a whole.
        module: full path of the module.
        layer: block number within its stack, or None outside the blocks.
        slice: the role's features of a fused module, None for a whole module.
        kind: linear (4- and 8-bit ones too), conv1d (weight stored (in, out)), embedding, or experts (a 3-D parameter).
        key: its path in adapter files.
        stack: encoder or decoder, or None outside the blocks.
        experts: of kind experts, where their weights are and of what shape.
    """

    role: str | None
    module: str
    layer: int | None
    slice: FusedSlice | None
    kind: Kind
    key: str
    stack: Stack | None = None
    experts: ExpertRole | None = None

    @property
    def place(self) -> str:
        """Path of what holds the weight: the module's, or the 3-D parameter's."""
        return self.experts.path if self.experts else self.module


def resolve_targets(
    model: nn.Module,
    anatomy: Anatomy,
    targets: Sequence[str] | str,
    *,
    exclude: Sequence[str] | str | None = None,
    layers: Collection[int] | int | None = None,
    experts: ExpertChoice | None = None,
) -> list[Target]:
    """Return what `targets` names, in the model's order, each once; a model on the meta device is enough.

    Args:
        targets: roles (`attn.q`), branches (`ffn`: all its linears), `all-linear` (every linear of the blocks),
            `embeddings`, module names (a full path, or trailing parts of it), or, as a string, one regular expression
            that must match a module's whole path. The name of a fused module means all of it, a role means its slice.
            Experts are named by role (`experts.up`), all of them (`experts`), or by a 3-D parameter's name.
        exclude: roles, module names or one regular expression to leave out.
        layers: numbers of the blocks to change; what is outside the blocks is then left out.
        experts: which of them, for a method that can change 3-D parameters; None for one that cannot.

    A group (`all-linear`, a branch, an expression) leaves out linears at which a change would be lost, and routers.

    Raises:
        UserError: entries match nothing, or one names such a linear.
    """
    search = _Search(model, anatomy)
    chosen: list[Target] = []
    problems: list[Problem] = []
    for entry in _entries(targets):
        found = search.matching(entry, is_pattern=_is_pattern(targets))
        if not found:
            problems.append(search.no_match(entry, "method.target_modules", is_pattern=_is_pattern(targets)))
        problems += search.useless(found, entry, is_group=is_group_entry(entry, targets))
        chosen += [one for one in found if not is_group_entry(entry, targets) or not search.unfit(one)]
    for entry in experts.parameters if experts else ():
        found = [target for target in search.of_experts(entry) if target.kind == "experts"]
        if not found or entry in ROLE_WORDS:
            problems.append(no_such_parameter(anatomy.experts, entry, "method.target_parameters"))
        chosen += found
    excluded: list[Target] = []
    for entry in _entries(exclude or []):
        found = search.matching(entry, is_pattern=_is_pattern(exclude))
        if not found:
            problems.append(search.no_match(entry, "method.exclude_modules", is_pattern=_is_pattern(exclude)))
        excluded += found
    if layers is not None:
        chosen, wrong = _within(chosen, anatomy, {layers} if isinstance(layers, int) else set(layers))
        problems += wrong
    stacked = [target.place for target in chosen if target.kind == "experts"]
    if experts is None and stacked:
        problems.append(refused(stacked, "method.target_modules"))
    elif experts is not None and experts.numbers is not None and not problems:
        chosen, wrong = _of_numbers(chosen, anatomy, set(experts.numbers))
        problems += wrong
    if problems:
        raise UserError(problems)
    chosen = search.without(search.unique(chosen), excluded)
    if not chosen:
        raise UserError(_nothing_left(excluded))
    return chosen


def _nothing_left(excluded: list[Target]) -> Problem:
    if excluded:
        return Problem("exclude_modules leaves no target", key="method.exclude_modules")
    return Problem("a forward pass has no use of a change of these", key="method.target_modules")


def left_out_of_groups(model: nn.Module, anatomy: Anatomy, targets: Sequence[str] | str | None) -> dict[str, str]:
    """Return the linears that the groups among `targets` would name and that were left out: path to reason.

    Args:
        targets: `target_modules`; None where a method has places of its own.
    """
    groups = [entry for entry in _entries(targets or []) if targets and is_group_entry(entry, targets)]
    search = _Search(model, anatomy)
    named = [target for entry in groups for target in search.matching(entry, is_pattern=_is_pattern(targets))]
    return {target.module: search.passed_over[target.module] for target in named if search.unfit(target)}


def is_group_entry(entry: str, targets: Sequence[str] | str) -> bool:
    """Tell whether an entry of `targets` stands for several kinds of layers."""
    return _is_pattern(targets) or entry == ALL_LINEAR or entry in BLOCK_ROLES


def summarise_targets(targets: Iterable[Target]) -> str:
    """Describe targets, such as `attn.q x 12, attn.v x 12 (12 layers matched)`."""
    targets = list(targets)
    names = Counter(target.role or short_path(target.place) for target in targets)
    blocks = {(target.stack, target.layer) for target in targets if target.layer is not None}
    counts = ", ".join(f"{name} x {count}" for name, count in names.items())
    return f"{counts} ({len(blocks)} layer{'s' * (len(blocks) != 1)} matched)" if blocks else counts


def summarise_ranks(ranked: Iterable[tuple[Target, int]]) -> str | None:
    """Describe ranks that differ, such as `attn.q 3 to 16, attn.v 8`; None where all are one."""
    by_name: dict[str, list[int]] = {}
    for target, rank in ranked:
        by_name.setdefault(target.role or short_path(target.module), []).append(rank)
    if len({rank for ranks in by_name.values() for rank in ranks}) < 2:
        return None
    spans = {name: (min(ranks), max(ranks)) for name, ranks in by_name.items()}
    return ", ".join(f"{name} {low}" + f" to {high}" * (low != high) for name, (low, high) in spans.items())


def short_path(module: str) -> str:
    """Return the part of a path after its last block number."""
    return re.sub(r"^.*\.\d+\.", "", module)


def _entries(targets: Sequence[str] | str) -> list[str]:
    return [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))


def _is_pattern(targets: Sequence[str] | str | None) -> bool:
    return isinstance(targets, str) and targets not in ROLE_WORDS


def _within(chosen: list[Target], anatomy: Anatomy, layers: set[int]) -> tuple[list[Target], list[Problem]]:
    depth = max(len(paths) for paths in anatomy.layers.values())
    beyond = sorted(layer for layer in layers if not 0 <= layer < depth)
    if beyond:
        message = f"the model has blocks 0 to {depth - 1}, not {', '.join(map(str, beyond))}"
        return [], [Problem(message, key="method.layers_to_transform")]
    kept = [target for target in chosen if target.layer in layers]
    if chosen and not kept:
        return [], [Problem("none of the targets is in these blocks", key="method.layers_to_transform")]
    return kept, []


def _of_numbers(chosen: list[Target], anatomy: Anatomy, numbers: set[int]) -> tuple[list[Target], list[Problem]]:
    """Return the targets without the linears of other experts, and the problem of numbers that are no experts."""
    own = {role.module: role for role in anatomy.experts if role.parameter is None}
    every = [target.experts or own.get(target.module) for target in chosen]
    problems = beyond([role for role in every if role is not None], numbers, "method.experts_to_transform")
    kept = [
        target
        for target, role in zip(chosen, every, strict=True)
        if role is None or role.expert is None or role.expert in numbers
    ]
    return kept, problems


class _Search:
    """Looks up entries in one model."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.all_modules = dict(model.named_modules())
        self.kinds: dict[str, Kind] = {
            name: kind
            for name, module in self.all_modules.items()
            if not is_added(name) and (kind := module_kind(module)) is not None
        }
        self.order = {name: i for i, name in enumerate(self.all_modules)}
        self.block_of: dict[str, tuple[Stack, int]] = {
            path: (_stack(stack), number)
            for stack, paths in anatomy.layers.items()
            for number, path in enumerate(paths)
        }
        self.whole_roles = {linear.module: linear.role for linear in anatomy.linears if linear.slice is None}
        self.own_experts = {role.module: role.role for role in anatomy.experts if role.parameter is None}
        self.whole_roles.update({module: role for module, role in self.own_experts.items() if role})
        self.left_out = dict(anatomy.left_out)
        self.model = model

    @cached_property
    def passed_over(self) -> dict[str, str]:
        """The linears at which a change would be lost, and why; families of the table need no trial."""
        return {} if self.anatomy.origin == "table" else passed_over(self.model)

    def unfit(self, target: Target) -> bool:
        """Tell whether a change at a target would be lost."""
        return target.module in self.passed_over

    def useless(self, found: list[Target], entry: str, *, is_group: bool) -> list[Problem]:
        """Return the problem of an entry that names linears at which a change would be lost; roles need no trial.

        What is not called may stay: that it has no gradient is told after the first step.
        """
        names = [] if is_group or entry in ROLE_WORDS else [target.module for target in found]
        for name in names:
            if self.passed_over.get(name, NOT_CALLED) != NOT_CALLED:
                message = f"{name} cannot be a target: {self.passed_over[name]}"
                return [Problem(message, key="method.target_modules", suggestion=f"leave {entry} out")]
        return []

    def matching(self, entry: str, *, is_pattern: bool = False) -> list[Target]:
        """Return what an entry names; the list may be empty."""
        if entry in LINEAR_ROLES:
            return [
                Target(role.role, role.module, role.layer, role.slice, self.kinds[role.module], role.key, role.stack)
                for role in self.anatomy.linears
                if role.role == entry
            ]
        if entry in EXPERT_ROLES or entry == EXPERTS:
            return self.of_experts(entry)
        if entry in BLOCK_ROLES:
            return [self._whole(name) for name in self._of_branch(entry)]
        if entry == ALL_LINEAR:
            return [self._whole(name) for name in self._in_blocks()]
        if entry == "embeddings":
            return [self._whole(self.anatomy.embeddings)] if self.anatomy.embeddings in self.kinds else []
        if entry == "head":
            inside = tuple(f"{path}." for path in self.anatomy.head)
            return [self._whole(name) for name in self.kinds if name in self.anatomy.head or name.startswith(inside)]
        if is_pattern:
            pattern = _compile(entry)
            return [self._whole(name) for name in self.kinds if pattern.fullmatch(name)]
        modules = [self._whole(name) for name in self.kinds if name == entry or name.endswith(f".{entry}")]
        return modules or self.of_experts(entry)

    def of_experts(self, entry: str) -> list[Target]:
        """Return what an entry names among the experts; a linear of one expert is a target like any other."""
        return [
            Target(role.role, role.module, role.layer, role.slice, "experts", role.key, role.stack, role)
            if role.parameter
            else self._whole(role.module)
            for role in named_experts(self.anatomy.experts, entry)
        ]

    def _whole(self, module: str) -> Target:
        stack, layer = self._block(module) or (None, None)
        return Target(self.whole_roles.get(module), module, layer, None, self.kinds[module], module, stack)

    def _block(self, module: str) -> tuple[Stack, int] | None:
        parts = module.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((self.block_of[path] for path in paths if path in self.block_of), None)

    def _in_blocks(self) -> list[str]:
        return [
            name
            for name, kind in self.kinds.items()
            if kind != "embedding" and name not in self.anatomy.routers and self._block(name) is not None
            if name not in self.own_experts
        ]

    def _of_branch(self, branch: str) -> list[str]:
        """Modules of all roles of a branch, fused ones whole."""
        return list(
            dict.fromkeys(linear.module for linear in self.anatomy.linears if linear.role.rpartition(".")[0] == branch)
        )

    def unique(self, targets: list[Target]) -> list[Target]:
        """Return each place once, in the model's order; a slice goes when its module is there whole."""
        whole = {target.place for target in targets if target.slice is None}
        kept = {target.key: target for target in targets if target.slice is None or target.place not in whole}
        places = {role.path: number for number, role in enumerate(self.anatomy.experts)}
        return sorted(
            kept.values(),
            key=lambda t: (self.order[t.module], places.get(t.place, 0), t.slice.start if t.slice else 0),
        )

    def without(self, targets: list[Target], excluded: list[Target]) -> list[Target]:
        """Take `excluded` out; a fused module that loses one role keeps its other roles as slices."""
        gone_whole = {target.place for target in excluded if target.slice is None}
        gone_slices = {target.key for target in excluded if target.slice is not None}
        kept: list[Target] = []
        for target in targets:
            if target.place in gone_whole or target.key in gone_slices:
                continue
            if target.experts:
                kept += _without_roles(target, self.anatomy.experts, gone_slices)
                continue
            slices = [linear for linear in self.anatomy.linears if linear.module == target.module and linear.slice]
            if target.slice is None and any(linear.key in gone_slices for linear in slices):
                kept += [
                    replace(target, role=linear.role, slice=linear.slice, key=linear.key)
                    for linear in slices
                    if linear.key not in gone_slices
                ]
            else:
                kept.append(target)
        return kept

    def no_match(self, entry: str, key: str, *, is_pattern: bool) -> Problem:
        """Return the problem of an entry that matches nothing, with similar names."""
        roles = f"roles of this model: {', '.join(self._roles())}"
        if entry in ROLE_WORDS:
            reasons = "; ".join(sorted({f"{short_path(path)}: {reason}" for path, reason in self.anatomy.left_out}))
            message = f"this {self.anatomy.family} model has no {entry}" + (f" ({reasons})" if reasons else "")
            return Problem(message, key=key, suggestion=roles)
        if is_pattern:
            if any(entry in (name.rpartition(".")[2], short_path(name)) for name in self.kinds):
                message = f"{entry!r} alone is a regular expression, and matches no module's whole path"
                return Problem(message, key=key, suggestion=f"for the modules of this name, write a list: [{entry}]")
            near = ", ".join(list(self.kinds)[:3])
            message = f"the regular expression {entry!r} matches no linear or embedding module's whole path"
            return Problem(message, key=key, suggestion=f"paths look like {near}; {roles}")
        named = [name for name in self.all_modules if name == entry or name.endswith(f".{entry}")]
        if named:
            return self._not_linear(entry, named[0], key, roles)
        candidates = sorted(
            {short_path(name) for name in self.kinds} | {name.rpartition(".")[2] for name in self.kinds}
        )
        near_names = nearest(entry, [*candidates, *self._roles()], most=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near_names)}" if near_names else f"module names: {', '.join(candidates[:12])}"
        return Problem(f"no module is named {entry!r}", key=key, suggestion=f"{hint}; {roles}")

    def _not_linear(self, entry: str, path: str, key: str, roles: str) -> Problem:
        inside = [name[len(path) + 1 :] for name in self.kinds if name.startswith(f"{path}.")]
        hint = f"name what is in it: {', '.join(inside[:8])}; {roles}" if inside else roles
        reason = self.left_out.get(path)
        message = f"{entry!r} is a {type(self.all_modules[path]).__name__}, not a linear or an embedding"
        return Problem(f"{message}: {reason}" if reason else message, key=key, suggestion=hint)

    def _roles(self) -> list[str]:
        branches = dict.fromkeys(role.rpartition(".")[0] for role in self.anatomy.roles())
        return [*self.anatomy.roles(), *branches, ALL_LINEAR]


def _without_roles(target: Target, experts: Iterable[ExpertRole], gone: Collection[str]) -> list[Target]:
    """Return a 3-D parameter without the roles whose keys are gone; it stays whole where it loses none."""
    own = [role for role in experts if role.path == target.place]
    if target.slice is not None or not any(role.key in gone for role in own):
        return [target]
    return [
        replace(target, role=role.role, slice=role.slice, key=role.key, experts=role)
        for role in own
        if role.key not in gone
    ]


def _stack(name: str) -> Stack:
    return "encoder" if name == "encoder" else "decoder"


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            Problem(f"{pattern!r} is no regular expression: {error}", key="method.target_modules"),
        ) from error
