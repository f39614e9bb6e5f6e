"""What the entries of `target_modules` name in one model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cached_property

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.added_modules import is_added
from peftcli.models.anatomy import BLOCK_ROLES, EXPERT_ROLES, EXPERTS, LINEAR_ROLES, Anatomy, ExpertRole, Stack
from peftcli.models.experts.named_experts import instead_of, named_experts
from peftcli.models.module_view import Kind, module_kind
from peftcli.models.targets.target import Target, short_path
from peftcli.models.targets.target_entries import ALL_LINEAR, ROLE_WORDS
from peftcli.models.trial_forward import NOT_CALLED, passed_over
from peftcli.suggestions import nearest


class TargetSearch:
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
        within = f"name what is in it: {', '.join(inside[:8])}; {roles}" if inside else roles
        hint = instead_of(self.anatomy.experts, path, self.all_modules[path]) or within
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
