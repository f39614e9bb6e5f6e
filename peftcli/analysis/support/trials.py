"""What is tried of one model type: the bare model, which blocks roles and branches reach, and every method on it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoConfig

from peftcli.analysis.contract_models import bare, batch_of, moved, own_logits
from peftcli.analysis.method_contracts import CLOSE, Contract, gradients, ignores_padding, merges, uses_cache
from peftcli.analysis.output_effects import cache_effect, padding_effect
from peftcli.analysis.support.tiny_types import TypeModel, first_line, hyper_parameters, tiny_type
from peftcli.analysis.support.tried_types import BARE, TRIED, deviation
from peftcli.assembly.outline import kind_problems
from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.model_tasks import check_task
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.targets.target_entries import ALL_LINEAR
from peftcli.models.targets.target_modules import resolve_targets
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_table import task_info

CONTRACTS: dict[str, Contract] = {
    "gradient": gradients,
    "padding": ignores_padding,
    "cache": uses_cache,
    "merge": merges,
}
"""What is tried of a method that attaches; each returns what is wrong, or None."""
SECONDS = 60
"""CPU time that one trial may take."""
REFUSED, WRONG, UNKNOWN = "refused: ", "wrong: ", "unknown: "
"""A cell is `tried` (it was, and holds), or one of the others with what was found or said."""
_LONGEST = 240
_SETS = 4
"""Sets of other values that the bare model is measured with."""
_LONGER = (0, 8, 16)
"""Tokens that rows are longer: virtual tokens make them so, and an indexer that keeps eight tokens begins to choose."""

Record = dict[str, Any]


def try_type(model_type: str, task: TaskName, methods: list[str]) -> Record:
    """Build a tiny model of a type and try methods on it.

    Returns:
        `model`: a cell on whether it can be built and read, and then `found` (by table or structure), `roles` and
        `branches` (name: blocks that have it, of blocks in all), `all_linear` (modules, share of the blocks' weights),
        `padding` and `cache` of the bare model; and `methods`: for each its cells, only `attach` where that failed.
    """
    try:
        check_task(AutoConfig.for_model(model_type), task)
    except UserError as error:
        return {"model": REFUSED + _said(error), "methods": {}}
    except Exception as error:  # a config class that cannot be made without arguments
        return {"model": UNKNOWN + _short(error), "methods": {}}
    try:
        with _cpu_seconds(SECONDS):
            kind = tiny_type(model_type, task)
    except UserError as error:
        return {"model": UNKNOWN + _said(error), "methods": {}}
    except TimeoutError as error:
        return {"model": UNKNOWN + _short(error), "methods": {}}
    model = bare(kind)
    try:
        anatomy = read_anatomy(model)
    except UserError as error:
        return {"model": REFUSED + _said(error), "methods": {}}
    except Exception as error:
        return {"model": WRONG + _short(error), "methods": {}}
    if problems := kind_problems(anatomy, task):
        return {"model": REFUSED + problems[0].message, "methods": {}}
    try:
        with torch.no_grad():
            model(**batch_of(kind))
    except Exception as error:  # GIT's counts the tokens of an image that is not there
        return {"model": f"{UNKNOWN}its own loss fails on text alone: {_short(error)}", "methods": {}}
    facts = {"model": TRIED, "found": anatomy.origin, **_reach(anatomy), **_all_linear(model, anatomy), **_bare(kind)}
    found = {name: _method(name, kind, anatomy) for name in methods}
    return {**facts, **moved_effects(kind, found), "methods": found}


def _method(name: str, kind: TypeModel, anatomy: Anatomy) -> dict[str, str]:
    method = registry.method(name)
    if method.info.tasks and kind.task not in method.info.tasks:
        return {"attach": f"{REFUSED}it serves {', '.join(sorted(method.info.tasks))}"}
    try:
        params = method.info.params.model_validate(hyper_parameters(name))
        reasons = method.check(anatomy, params)
    except (UserError, ValidationError) as error:
        return {"attach": REFUSED + _said(error)}
    except Exception as error:
        return {"attach": WRONG + _short(error)}
    if reasons:
        return {"attach": REFUSED + "; ".join(reasons)[:_LONGEST]}
    cells: dict[str, str] = {}
    for what, contract in CONTRACTS.items():
        try:
            with _cpu_seconds(SECONDS):
                problem = contract(kind, params)
        except UserError as error:
            return {"attach": REFUSED + _said(error)} if not cells else {**cells, what: REFUSED + _said(error)}
        except TimeoutError as error:
            cells[what] = UNKNOWN + _short(error)
        except Exception as error:  # whatever the model's code raises
            cells[what] = WRONG + _short(error)
            kind.last_disturbed.clear()  # what it left behind is no ground for the next trial
        else:
            cells[what] = WRONG + problem if problem else TRIED
    return {"attach": TRIED, **cells}


def _reach(anatomy: Anatomy) -> Record:
    """Return how many of a stack's blocks have each role and each branch."""
    blocks = sum(len(paths) for paths in anatomy.layers.values())
    decoder = len(anatomy.layers.get("decoder", ()))

    def counted(items: Any) -> dict[str, str]:
        places: dict[str, set[tuple[str, int]]] = {}
        for name, stack, layer in items:
            places.setdefault(name, set()).add((stack, layer))
        return {
            name: f"{len(found)}/{decoder if name.startswith('cross') else blocks}"
            for name, found in sorted(places.items())
        }

    return {
        "roles": counted((linear.role, linear.stack, linear.layer) for linear in anatomy.linears),
        "branches": counted((block.kind, block.stack, block.layer) for block in anatomy.blocks),
    }


def _all_linear(model: nn.Module, anatomy: Anatomy) -> Record:
    """Return how many modules `all-linear` takes, and their share of the weights in the blocks."""
    try:
        targets = {target.module for target in resolve_targets(model, anatomy, [ALL_LINEAR])}
    except UserError as error:
        return {"all_linear": REFUSED + _said(error)}
    within = tuple(f"{path}." for paths in anatomy.layers.values() for path in paths)
    sizes = {name: each.numel() for name, each in model.named_parameters() if name.startswith(within)}
    taken = sum(size for name, size in sizes.items() if name.rpartition(".")[0] in targets)
    return {"all_linear": {"modules": len(targets), "share": round(taken / max(1, sum(sizes.values())), 3)}}


def _bare(kind: TypeModel) -> Record:
    """Return what of padding and cache holds for the bare model, and whether its tokens reach each other."""
    found: Record = {what: _effect(what, kind, bare(kind)) for what in _measured(kind)}
    if kind.tokens_apart:
        found["apart"] = "its attention gives zeros here"
    return found


def moved_effects(kind: TypeModel, methods: dict[str, dict[str, str]]) -> Record:
    """Return how far padding and cache change the bare model's outputs otherwise, where methods were wrong.

    Only with other values and longer rows can it be told whether a deviation that it did not show at first is its own.

    Returns:
        `moved`: by `padding` and `cache` the largest that was found; empty where no method was wrong.
    """
    found: dict[str, float] = {}
    for what in _measured(kind):
        if any(cells.get(what, "").startswith(WRONG) for cells in methods.values()):
            models = [bare(kind), *(moved(kind, seed) for seed in range(_SETS))]
            offs = [deviation(_effect(what, kind, model, more)) for model in models for more in _LONGER]
            found[what] = max(off for off in (0.0, *offs) if isfinite(off))
    shown = {what: off for what, off in found.items() if off}
    return {"moved": shown} if shown else {}


def _measured(kind: TypeModel) -> tuple[str, ...]:
    return BARE if task_info(kind.task).generates else BARE[:1]


def _padding(kind: TypeModel, model: nn.Module, more: int) -> float:
    return padding_effect(kind, lambda batch: own_logits(model, batch, batch["labels"]), more)


def _cache(kind: TypeModel, model: nn.Module, more: int) -> float:
    return cache_effect(kind, model, more=more)


_EFFECTS: dict[str, Callable[[TypeModel, nn.Module, int], float]] = {"padding": _padding, "cache": _cache}
"""By what the function that tells how far a model's outputs change with it, in rows that are longer by a number."""


def _effect(what: str, kind: TypeModel, model: nn.Module, more: int = 0) -> str:
    try:
        with _cpu_seconds(SECONDS):
            off = _EFFECTS[what](kind, model, more)
    except Exception as error:
        return WRONG + _short(error)
    return TRIED if off <= CLOSE else f"{WRONG}differs by {off:.1e}"


@contextmanager
def _cpu_seconds(most: int) -> Iterator[None]:
    """Raise TimeoutError after so much CPU time of this process, whatever else the machine does."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {most} seconds of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _said(error: UserError | ValidationError) -> str:
    if isinstance(error, UserError):
        return "; ".join(problem.message for problem in error.problems)[:_LONGEST]
    return "; ".join(str(one["msg"]) for one in error.errors())[:_LONGEST]


def _short(error: BaseException) -> str:
    return first_line(error)[:_LONGEST]
