"""Optimizers by the names that transformers' `optim` uses. One record per name; factories import on use.

A record says what an optimizer needs; the factory turns `TrainingSpec` into its arguments. `peft schema` and the tests
list the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import TrainingSpec
from peftcli.suggestions import did_you_mean, nearest

Groups = list[dict[str, Any]]
Factory = Callable[[Groups, float, TrainingSpec, torch.device], Optimizer]


@dataclass(frozen=True)
class OptimizerInfo:
    """One optimizer: what the schema shows and what the loop asks.

    Args:
        summary: one sentence.
        make: from groups, peak learning rate, options and device to the optimizer.
        package: the package it is from.
        cuda_only: whether it needs CUDA (paged state).
    """

    summary: str
    make: Factory
    package: str = "torch"
    cuda_only: bool = False


def _adam_options(spec: TrainingSpec) -> dict[str, Any]:
    return {"betas": (spec.adam_beta1, spec.adam_beta2), "eps": spec.adam_epsilon}


def _adamw_torch(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
    # fused: one kernel for all parameters; exists for CPU and CUDA, others use foreach loops
    fused = device.type in ("cpu", "cuda") and all(p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=rate, fused=fused, **_adam_options(spec))


def _adamw_plain(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
    return torch.optim.AdamW(groups, lr=rate, fused=False, **_adam_options(spec))


def _sgd(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
    return torch.optim.SGD(groups, lr=rate)


def _adagrad(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
    return torch.optim.Adagrad(groups, lr=rate)


def _rmsprop(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
    return torch.optim.RMSprop(groups, lr=rate)


def _adafactor(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
    from transformers.optimization import Adafactor

    made: Optimizer = Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    return made


def _bitsandbytes(name: str) -> Factory:
    def make(groups: Groups, rate: float, spec: TrainingSpec, device: torch.device) -> Optimizer:
        import bitsandbytes.optim

        options: dict[str, Any] = {}
        if "Adam" in name:
            options = _adam_options(spec)
        if "AdEMAMix" in name:
            options = {"betas": (spec.adam_beta1, spec.adam_beta2, 0.9999), "eps": spec.adam_epsilon}
        if "Lion" in name:
            options = {"betas": (spec.adam_beta1, spec.adam_beta2)}
        made: Optimizer = getattr(bitsandbytes.optim, name)(groups, lr=rate, **options)
        return made

    return make


def _bnb(summary: str, name: str) -> OptimizerInfo:
    return OptimizerInfo(summary, _bitsandbytes(name), "bitsandbytes", cuda_only=name.startswith("Paged"))


OPTIMIZERS: dict[str, OptimizerInfo] = {
    "adamw_torch": OptimizerInfo("AdamW, fused where the device has it", _adamw_torch),
    "adamw_torch_fused": OptimizerInfo("the same; transformers' name for it", _adamw_torch),
    "adamw_torch_plain": OptimizerInfo("AdamW without the fused kernel", _adamw_plain),
    "sgd": OptimizerInfo("stochastic gradient descent", _sgd),
    "adagrad": OptimizerInfo("AdaGrad", _adagrad),
    "rmsprop": OptimizerInfo("RMSprop", _rmsprop),
    "adafactor": OptimizerInfo("Adafactor with a given learning rate", _adafactor, "transformers"),
    "adamw_8bit": _bnb("AdamW with 8-bit state", "AdamW8bit"),
    "adamw_bnb_8bit": _bnb("the same; transformers' other name for it", "AdamW8bit"),
    "paged_adamw_32bit": _bnb("AdamW with state that pages to host memory", "PagedAdamW32bit"),
    "paged_adamw_8bit": _bnb("AdamW with 8-bit state that pages to host memory", "PagedAdamW8bit"),
    "ademamix": _bnb("AdEMAMix", "AdEMAMix"),
    "ademamix_8bit": _bnb("AdEMAMix with 8-bit state", "AdEMAMix8bit"),
    "paged_ademamix_32bit": _bnb("AdEMAMix with state that pages to host memory", "PagedAdEMAMix32bit"),
    "paged_ademamix_8bit": _bnb("AdEMAMix with 8-bit state that pages to host memory", "PagedAdEMAMix8bit"),
    "lion_32bit": _bnb("Lion", "Lion32bit"),
    "lion_8bit": _bnb("Lion with 8-bit state", "Lion8bit"),
    "paged_lion_32bit": _bnb("Lion with state that pages to host memory", "PagedLion32bit"),
    "paged_lion_8bit": _bnb("Lion with 8-bit state that pages to host memory", "PagedLion8bit"),
    "rmsprop_bnb": _bnb("bitsandbytes' RMSprop", "RMSprop"),
    "rmsprop_bnb_8bit": _bnb("RMSprop with 8-bit state", "RMSprop8bit"),
    "rmsprop_bnb_32bit": _bnb("RMSprop with 32-bit state", "RMSprop32bit"),
}


def optimizer_problems(spec: TrainingSpec, device_type: str) -> list[Problem]:
    """Return what is wrong with `training.optim` here: an unknown name, a missing package, a device that lacks it."""
    info = OPTIMIZERS.get(spec.optim)
    key = "training.optim"
    if info is None:
        near = nearest(spec.optim, OPTIMIZERS, most=3, cutoff=0.5)
        choice = did_you_mean(near, f"All: {', '.join(OPTIMIZERS)}")
        return [Problem(f"there is no optimizer {spec.optim!r}", key=key, suggestion=choice)]
    problems = []
    if info.package == "bitsandbytes" and not _installed("bitsandbytes"):
        remedy = "python -m pip install bitsandbytes, or use adamw_torch"
        problems.append(Problem(f"{spec.optim} needs bitsandbytes, which is not installed", key=key, suggestion=remedy))
    elif info.cuda_only and device_type != "cuda":
        remedy = f"use {spec.optim.removeprefix('paged_')} or adamw_torch"
        remedy = "use adamw_torch" if spec.optim.removeprefix("paged_") not in OPTIMIZERS else remedy
        problems.append(
            Problem(f"{spec.optim} pages its state between CUDA and host memory; the device is {device_type}",
                    key=key, suggestion=remedy)
        )  # fmt: skip
    return problems


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


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
        return OPTIMIZERS[spec.optim].make(groups, learning_rate, spec, device)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"training.optim: {spec.optim} cannot be made on {device.type}: {error}", suggestion="use adamw_torch"
        ) from error
