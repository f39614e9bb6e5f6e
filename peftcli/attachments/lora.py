"""The torch side of LoRA: parts at targets, what reads base values, and the changes that a merge makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.attachments.biases import start_from_base, train_biases
from peftcli.errors import UserError
from peftcli.layers.base_linear import base_linear
from peftcli.layers.parts.bias import BiasDelta
from peftcli.layers.parts.lora import (
    DoraDelta,
    EmbeddingLoraDelta,
    Initialiser,
    LoraDelta,
    embedding_init,
    embedding_random_init,
    gaussian_init,
    kaiming_init,
    orthogonal_init,
    principal_init_,
    random_init,
)
from peftcli.layers.site import Part, output_site
from peftcli.methods.lora import LoraParams, names_target, pissa_iterations, rank_above_matrix
from peftcli.models.targets import Target
from peftcli.protocol.attachment import Attachment, Placed

_LINEAR_INITS: dict[bool | str, Initialiser] = {
    True: kaiming_init,
    False: random_init,
    "gaussian": gaussian_init,
    "orthogonal": orthogonal_init,
}


@dataclass
class LoraAttachment(Attachment):
    """An attachment whose parts are low-rank changes.

    Args:
        params: the hyper-parameters it was made from.
    """

    params: LoraParams = field(default_factory=LoraParams)

    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Set DoRA's magnitudes, PiSSA's factors and biases beside quantised layers from the base's values."""
        start_from_base(self)
        init = self.params.init_lora_weights
        for placed in self.placed:
            part = placed.part
            if isinstance(part, LoraDelta) and part.keep_initial:
                principal_init_(part, part.base.weight(), pissa_iterations(str(init)))
            if isinstance(part, DoraDelta) or (isinstance(part, EmbeddingLoraDelta) and part.magnitude):
                part.set_magnitude()

    def learning_rate_ratios(self) -> dict[str, float]:
        """Return LoRA+'s factor for B and for one-dimensional parameters of the method."""
        ratio = self.params.loraplus_lr_ratio
        if ratio is None:
            return {}
        mine = [name for name in self.trainable_parameters() if name not in {*self.head, *self.to_save}]
        return {name: ratio for name in mine if _is_b_group(name, self.trainable_parameters()[name])}


def _is_b_group(name: str, parameter: Tensor) -> bool:
    return name.endswith("lora_B.weight") or parameter.ndim == 1


def place_all(attachment: LoraAttachment, targets: list[Target], params: LoraParams) -> None:
    """Add a part at every target, and the biases that `bias: lora_only` trains.

    Raises:
        UserError: a pattern matches nothing, a rank is above its matrix, or a variant does not fit a target.
    """
    _refuse_idle_patterns(targets, params)
    reasons: dict[str, None] = {}
    for target in targets:
        host = attachment.model.get_submodule(target.module)
        reason = _why_not(host, target, params)
        if reason:
            reasons[reason] = None
            continue
        part = _make_part(host, target, params)
        output_site(host).parts.append(part)
        attachment.placed.append(Placed(target.key, part))
        if params.bias == "lora_only":
            _train_bias(attachment, host, target)
    if reasons:
        raise UserError("; ".join(reasons), suggestion="change method.r, method.rank_pattern or method.target_modules")


def _refuse_idle_patterns(targets: list[Target], params: LoraParams) -> None:
    for option, patterns in (("rank_pattern", params.rank_pattern), ("alpha_pattern", params.alpha_pattern)):
        for pattern in patterns:
            if not any(names_target(pattern, target.role, target.key) for target in targets):
                names = sorted({target.role or target.module.rsplit(".", 1)[-1] for target in targets})
                raise UserError(
                    f"method.{option}: {pattern!r} matches none of the {len(targets)} targets",
                    suggestion=f"use a role, or a regular expression on the end of a path; targets: {', '.join(names)}",
                )


def _why_not(host: nn.Module, target: Target, params: LoraParams) -> str | None:
    what = target.role or target.module
    rank = params.rank_of(target.role, target.key)
    if target.kind == "embedding":
        if params.starts_from_base or params.init_lora_weights == "orthogonal":
            return f"{params.init_lora_weights} initialisation is not defined for the embedding {target.module}"
        vocabulary, width = host.get_parameter("weight").shape
        return rank_above_matrix(rank, vocabulary, width, what)
    base = base_linear(host, target.slice)
    return rank_above_matrix(rank, base.out_features, base.in_features, what)


def _make_part(host: nn.Module, target: Target, params: LoraParams) -> Part:
    rank = params.rank_of(target.role, target.key)
    scale = params.scale_of(target.role, target.key, rank)
    if target.kind == "embedding":
        init = embedding_random_init if params.init_lora_weights is False else embedding_init
        return EmbeddingLoraDelta(host, rank, scale, init=init, magnitude=params.use_dora)
    part = DoraDelta if params.use_dora else LoraDelta
    return part(
        base_linear(host, target.slice),
        rank,
        scale,
        dropout=params.lora_dropout,
        init=_LINEAR_INITS.get(params.init_lora_weights, kaiming_init),
        keep_initial=params.starts_from_base,
    )


def _train_bias(attachment: LoraAttachment, host: nn.Module, target: Target) -> None:
    bias = getattr(host, "bias", None)
    if not isinstance(bias, Tensor):
        return
    if target.slice is None:
        train_biases(attachment, [f"{target.module}.bias"])
        return
    part = BiasDelta(target.slice.features, target.slice, bias.device)
    output_site(host).parts.append(part)
    attachment.placed.append(Placed(target.key, part))


def linear_change(tensors: Mapping[str, Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """Return the change of a weight (d_out, d_in) that saved LoRA, DoRA or PiSSA tensors stand for.

    It works in place, and makes the product only when it is called: a merge holds one matrix at a time.
    """

    def change(weight: Tensor) -> Tensor:
        own = {suffix: tensor.to(weight) for suffix, tensor in tensors.items()}
        weight.addmm_(own["lora_B.weight"], own["lora_A.weight"], alpha=scale)
        if "initial_A" in own:
            weight.addmm_(own["initial_B"], own["initial_A"], alpha=-scale)
        if "lora_magnitude_vector" in own:
            norm = torch.linalg.vector_norm(weight, dim=1)
            weight.mul_((own["lora_magnitude_vector"] / norm).unsqueeze(1))
        return weight

    return change


def embedding_change(tensors: Mapping[str, Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """Return the change of a table (vocab, d) that saved embedding tensors stand for."""

    def change(table: Tensor) -> Tensor:
        own = {suffix: tensor.to(table) for suffix, tensor in tensors.items()}
        table.addmm_(own["lora_embedding_A"].T, own["lora_embedding_B"].T, alpha=scale)
        if "lora_magnitude_vector" in own:
            table.mul_(own["lora_magnitude_vector"] / torch.linalg.vector_norm(table, dim=0))
        return table

    return change
