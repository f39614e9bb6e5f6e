"""Find the modules that `target_modules` of a recipe names. Every entry must match at least one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.experts.named_experts import ExpertChoice, beyond, no_such_parameter, refused
from peftcli.models.targets.target import Target
from peftcli.models.targets.target_entries import ROLE_WORDS, is_group_entry, is_pattern, listed
from peftcli.models.targets.target_search import TargetSearch

_Found = tuple[list[Target], list[Problem]]


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
    search = TargetSearch(model, anatomy)
    chosen, problems = _named(search, targets)
    stacked, wrong = _named_parameters(search, experts)
    chosen += stacked
    excluded, unknown = _excluded(search, exclude or [])
    problems += wrong + unknown
    if layers is not None:
        chosen, wrong = _within(chosen, anatomy, {layers} if isinstance(layers, int) else set(layers))
        problems += wrong
    places = [target.place for target in chosen if target.kind == "experts"]
    if experts is None and places:
        problems.append(refused(places, "method.target_modules"))
    elif experts is not None and experts.numbers is not None and not problems:
        chosen, wrong = _of_numbers(chosen, anatomy, set(experts.numbers))
        problems += wrong
    if problems:
        raise UserError(problems)
    chosen = search.without(search.unique(chosen), excluded)
    if not chosen:
        raise UserError(_nothing_left(excluded))
    return chosen


def _named(search: TargetSearch, targets: Sequence[str] | str) -> _Found:
    """Return what the entries name, and the problems of those that name nothing or what is no place for a change."""
    chosen: list[Target] = []
    by_entry, problems = _matched(search, targets, "method.target_modules")
    for entry, found in by_entry:
        problems += search.useless(found, entry, is_group=is_group_entry(entry, targets))
        chosen += [one for one in found if not is_group_entry(entry, targets) or not search.unfit(one)]
    return chosen, problems


def _named_parameters(search: TargetSearch, experts: ExpertChoice | None) -> _Found:
    """Return the 3-D parameters that `target_parameters` names, and the problems of entries that name none."""
    chosen: list[Target] = []
    problems: list[Problem] = []
    for entry in experts.parameters if experts else ():
        found = [target for target in search.of_experts(entry) if target.kind == "experts"]
        if not found or entry in ROLE_WORDS:
            problems.append(no_such_parameter(search.anatomy.experts, entry, "method.target_parameters"))
        chosen += found
    return chosen, problems


def _excluded(search: TargetSearch, exclude: Sequence[str] | str) -> _Found:
    by_entry, problems = _matched(search, exclude, "method.exclude_modules")
    return [target for _, found in by_entry for target in found], problems


def _matched(
    search: TargetSearch, entries: Sequence[str] | str, key: str
) -> tuple[list[tuple[str, list[Target]]], list[Problem]]:
    """Return what each entry of a key matches, and the problems of those that match nothing."""
    pattern = is_pattern(entries)
    by_entry = [(entry, search.matching(entry, is_pattern=pattern)) for entry in listed(entries)]
    return by_entry, [search.no_match(entry, key, is_pattern=pattern) for entry, found in by_entry if not found]


def _nothing_left(excluded: list[Target]) -> Problem:
    if excluded:
        return Problem("exclude_modules leaves no target", key="method.exclude_modules")
    return Problem("a change of these modules would not affect any output of the model", key="method.target_modules")


def left_out_of_groups(model: nn.Module, anatomy: Anatomy, targets: Sequence[str] | str | None) -> dict[str, str]:
    """Return the linears that the groups among `targets` would name and that were left out: path to reason.

    Args:
        targets: `target_modules`; None where a method has places of its own.
    """
    groups = [entry for entry in listed(targets or []) if targets and is_group_entry(entry, targets)]
    search = TargetSearch(model, anatomy)
    named = [target for entry in groups for target in search.matching(entry, is_pattern=is_pattern(targets))]
    return {target.module: search.passed_over[target.module] for target in named if search.unfit(target)}


def _within(chosen: list[Target], anatomy: Anatomy, layers: set[int]) -> _Found:
    depth = max(len(paths) for paths in anatomy.layers.values())
    beyond = sorted(layer for layer in layers if not 0 <= layer < depth)
    if beyond:
        message = f"the model has blocks 0 to {depth - 1}, not {', '.join(map(str, beyond))}"
        return [], [Problem(message, key="method.layers_to_transform")]
    kept = [target for target in chosen if target.layer in layers]
    if chosen and not kept:
        return [], [Problem("none of the targets is in these blocks", key="method.layers_to_transform")]
    return kept, []


def _of_numbers(chosen: list[Target], anatomy: Anatomy, numbers: set[int]) -> _Found:
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
