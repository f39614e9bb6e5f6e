"""The optimizers, by the names that transformers' `optim` uses. A new one is one line in the table below.

Each line says which class of which library it is and what the recipe passes to it; `training/optim` builds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peftcli.recipe.schema import TrainingSpec

Options = Callable[[TrainingSpec], dict[str, Any]]


def _none(_spec: TrainingSpec) -> dict[str, Any]:
    return {}


def _adam(spec: TrainingSpec) -> dict[str, Any]:
    return {"betas": (spec.adam_beta1, spec.adam_beta2), "eps": spec.adam_epsilon}


def _ademamix(spec: TrainingSpec) -> dict[str, Any]:
    return {"betas": (spec.adam_beta1, spec.adam_beta2, 0.9999), "eps": spec.adam_epsilon}


def _lion(spec: TrainingSpec) -> dict[str, Any]:
    return {"betas": (spec.adam_beta1, spec.adam_beta2)}


def _given_rate(_spec: TrainingSpec) -> dict[str, Any]:
    return {"scale_parameter": False, "relative_step": False}


@dataclass(frozen=True)
class OptimizerInfo:
    """One optimizer.

    Args:
        summary: one sentence.
        module: where its class is.
        class_name: its class, which takes parameter groups and `lr`.
        options: what the recipe passes to it besides.
        fused: whether it computes in one kernel for all parameters where the device has it; None for a class that does
            not know this option.
    """

    summary: str
    module: str
    class_name: str
    options: Options = _none
    fused: bool | None = None

    @property
    def package(self) -> str:
        """The package that must be installed."""
        return self.module.partition(".")[0]

    @property
    def paged(self) -> bool:
        """Whether its state moves between the device's and the host's memory, which needs CUDA."""
        return self.class_name.startswith("Paged")


_TORCH, _TRANSFORMERS, _BNB = "torch.optim", "transformers.optimization", "bitsandbytes.optim"

OPTIMIZERS: dict[str, OptimizerInfo] = {
    "adamw_torch": OptimizerInfo("AdamW, fused where the device has it", _TORCH, "AdamW", _adam, fused=True),
    "adamw_torch_fused": OptimizerInfo("the same; transformers' name for it", _TORCH, "AdamW", _adam, fused=True),
    "adamw_torch_plain": OptimizerInfo("AdamW without the fused kernel", _TORCH, "AdamW", _adam, fused=False),
    "sgd": OptimizerInfo("stochastic gradient descent", _TORCH, "SGD"),
    "adagrad": OptimizerInfo("AdaGrad", _TORCH, "Adagrad"),
    "rmsprop": OptimizerInfo("RMSprop", _TORCH, "RMSprop"),
    "adafactor": OptimizerInfo("Adafactor with a given learning rate", _TRANSFORMERS, "Adafactor", _given_rate),
    "adamw_8bit": OptimizerInfo("AdamW with 8-bit state", _BNB, "AdamW8bit", _adam),
    "adamw_bnb_8bit": OptimizerInfo("the same; transformers' other name for it", _BNB, "AdamW8bit", _adam),
    "paged_adamw_32bit": OptimizerInfo("AdamW with state that pages to host memory", _BNB, "PagedAdamW32bit", _adam),
    "paged_adamw_8bit": OptimizerInfo(
        "AdamW with 8-bit state that pages to host memory", _BNB, "PagedAdamW8bit", _adam
    ),
    "ademamix": OptimizerInfo("AdEMAMix", _BNB, "AdEMAMix", _ademamix),
    "ademamix_8bit": OptimizerInfo("AdEMAMix with 8-bit state", _BNB, "AdEMAMix8bit", _ademamix),
    "paged_ademamix_32bit": OptimizerInfo(
        "AdEMAMix with state that pages to host memory", _BNB, "PagedAdEMAMix32bit", _ademamix
    ),
    "paged_ademamix_8bit": OptimizerInfo(
        "AdEMAMix with 8-bit state that pages to host memory", _BNB, "PagedAdEMAMix8bit", _ademamix
    ),
    "lion_32bit": OptimizerInfo("Lion", _BNB, "Lion32bit", _lion),
    "lion_8bit": OptimizerInfo("Lion with 8-bit state", _BNB, "Lion8bit", _lion),
    "paged_lion_32bit": OptimizerInfo("Lion with state that pages to host memory", _BNB, "PagedLion32bit", _lion),
    "paged_lion_8bit": OptimizerInfo("Lion with 8-bit state that pages to host memory", _BNB, "PagedLion8bit", _lion),
    "rmsprop_bnb": OptimizerInfo("bitsandbytes' RMSprop", _BNB, "RMSprop"),
    "rmsprop_bnb_8bit": OptimizerInfo("RMSprop with 8-bit state", _BNB, "RMSprop8bit"),
    "rmsprop_bnb_32bit": OptimizerInfo("RMSprop with 32-bit state", _BNB, "RMSprop32bit"),
}
