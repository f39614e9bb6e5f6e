"""Build the optimizer that a recipe names, and say what is wrong with it here."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer

from peftcli.errors import Problem, UserError
from peftcli.recipe.optimizer_table import OPTIMIZERS, OptimizerInfo
from peftcli.recipe.schema import TrainingSpec
from peftcli.suggestions import did_you_mean, nearest

Groups = list[dict[str, Any]]


def optimizer_problems(spec: TrainingSpec, device_type: str) -> list[Problem]:
    """Return what is wrong with `training.optim` here: an unknown name, a missing package, a device that lacks it."""
    info = OPTIMIZERS.get(spec.optim)
    key = "training.optim"
    if info is None:
        near = nearest(spec.optim, OPTIMIZERS, most=3, cutoff=0.5)
        choice = did_you_mean(near, f"All: {', '.join(OPTIMIZERS)}")
        return [Problem(f"there is no optimizer {spec.optim!r}", key=key, suggestion=choice)]
    problems = []
    if info.package == "bitsandbytes" and find_spec("bitsandbytes") is None:
        remedy = "python -m pip install bitsandbytes, or use adamw_torch"
        problems.append(Problem(f"{spec.optim} needs bitsandbytes, which is not installed", key=key, suggestion=remedy))
    elif info.paged and device_type != "cuda":
        remedy = f"use {spec.optim.removeprefix('paged_')} or adamw_torch"
        remedy = "use adamw_torch" if spec.optim.removeprefix("paged_") not in OPTIMIZERS else remedy
        problems.append(
            Problem(f"{spec.optim} pages its state between CUDA and host memory; the device is {device_type}",
                    key=key, suggestion=remedy)
        )  # fmt: skip
    return problems


def make_optimizer(spec: TrainingSpec, groups: Groups, learning_rate: float, device: torch.device) -> Optimizer:
    """Return the optimizer that the recipe names.

    Args:
        groups: parameter groups, each with its own `lr` and `weight_decay`.
        learning_rate: the peak rate, for groups without their own.

    Raises:
        UserError: the name is unknown, or this device or installation lacks it.
    """
    problems = optimizer_problems(spec, device.type)
    if problems:
        raise UserError(problems)
    try:
        return _built(OPTIMIZERS[spec.optim], groups, learning_rate, spec, device)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"training.optim: {spec.optim} cannot be made on {device.type}: {error}", suggestion="use adamw_torch"
        ) from error


def _built(
    info: OptimizerInfo, groups: Groups, learning_rate: float, spec: TrainingSpec, device: torch.device
) -> Optimizer:
    options = info.options(spec)
    if info.fused is not None:
        # fused: one kernel for all parameters; exists for CPU and CUDA, others use foreach loops
        able = device.type in ("cpu", "cuda") and all(p.is_floating_point() for g in groups for p in g["params"])
        options["fused"] = info.fused and able
    made: Optimizer = getattr(import_module(info.module), info.class_name)(groups, lr=learning_rate, **options)
    return made
