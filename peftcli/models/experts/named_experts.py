"""What an entry of `target_modules` or `target_parameters` means among the experts of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from peftcli.errors import Problem
from peftcli.models.anatomy import EXPERT_ROLES, EXPERTS, ExpertRole


@dataclass(frozen=True)
class ExpertChoice:
    """Which experts a method changes that can change 3-D parameters.

    Args:
        parameters: 3-D parameters besides what `target_modules` names, by full path or the end of it.
        numbers: of the experts; None for all.
    """

    parameters: Sequence[str] = ()
    numbers: Collection[int] | None = None


def named_experts(experts: Iterable[ExpertRole], entry: str) -> list[ExpertRole]:
    """Return the projections that an entry names, in the model's order, each once; the list may be empty.

    Args:
        experts: of the model.
        entry: a role; `experts` for all of them, fused ones as a whole; or the name of a 3-D parameter: its full path,
            or the end of it.
    """
    if entry in EXPERT_ROLES:
        return [role for role in experts if role.role == entry]
    if entry == EXPERTS:
        return _whole(experts)
    return _whole(
        role for role in experts if role.parameter and (role.path == entry or role.path.endswith(f".{entry}"))
    )


def by_key(experts: Iterable[ExpertRole]) -> dict[str, ExpertRole]:
    """Return the projections in 3-D parameters by their keys in adapter files: roles, and whole parameters."""
    stacked = [role for role in experts if role.parameter is not None]
    return {each.key: each for role in stacked for each in (role, role.whole())}


def _whole(experts: Iterable[ExpertRole]) -> list[ExpertRole]:
    return list({role.path: role.whole() for role in experts}.values())


def beyond(experts: Iterable[ExpertRole], numbers: Collection[int], key: str) -> list[Problem]:
    """Return the problem of numbers that are no experts of the projections, if there are any."""
    counts = {role.experts for role in experts}
    most = max(counts, default=0)
    wrong = sorted(number for number in numbers if number >= most)
    if most and not wrong:
        return []
    if not most:
        hint = "name experts in target_modules, or leave this key out"
        return [Problem("none of the targets is an expert", key=key, suggestion=hint)]
    return [Problem(f"a block has experts 0 to {most - 1}, not {', '.join(map(str, wrong))}", key=key)]


def no_such_parameter(experts: Iterable[ExpertRole], entry: str, key: str) -> Problem:
    """Return the problem of an entry that names no parameter of experts."""
    there = sorted({f"{role.module.rpartition('.')[2]}.{role.parameter}" for role in experts if role.parameter})
    hint = f"there are: {', '.join(there)}" if there else "this model has no experts with 3-D parameters; leave it out"
    return Problem(f"no parameter of experts is named {entry!r}", key=key, suggestion=hint)


def instead_of(experts: Iterable[ExpertRole], path: str, module: nn.Module) -> str | None:
    """Return how a recipe reaches a module that is no linear: one that holds experts, or a router, or a norm.

    Args:
        experts: of the model.
        path: of the module.
        module: itself; None is returned where it has no parameters of its own.
    """
    if any(role.module == path and role.parameter for role in experts):
        return f"{EXPERTS} names all experts, and a role, such as {EXPERT_ROLES[0]}, one projection of each"
    if not list(module.parameters(recurse=False)):
        return None
    return f"to train it whole, name it in method.modules_to_save: [{'.'.join(path.split('.')[-2:])}]"


def refused(paths: Sequence[str], key: str) -> Problem:
    """Return the problem of 3-D parameters under a method that changes modules only."""
    more = f" (and {len(paths) - 1} more)" * (len(paths) > 1)
    reason = f"{paths[0]}{more} is a 3-D parameter that holds all experts, and this method changes linears only"
    return Problem(reason, key=key, suggestion="leave the experts out, or use lora or ia3, which reach them")
