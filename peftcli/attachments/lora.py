"""The torch half of LoRA: parts at targets, their learning rates, and the changes that a merge makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftcli.attachments.input_components import input_components
from peftcli.errors import UserError
from peftcli.layers.base_linear import base_linear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.part_device import device_beside
from peftcli.layers.parts.bias import BiasDelta
from peftcli.layers.parts.dora import DoraDelta
from peftcli.layers.parts.lora import LoraDelta
from peftcli.layers.parts.lora_embedding import EmbeddingLoraDelta
from peftcli.layers.parts.lora_init import (
    Decomposition,
    Initialiser,
    embedding_init,
    embedding_random_init,
    gaussian_init,
    kaiming_init,
    orthogonal_init,
    random_init,
)
from peftcli.layers.site import Part, output_site
from peftcli.models.target_modules import Target
from peftcli.models.weights.stored_weights import StoredWeights
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.trained_biases import train_biases
from peftcli.tasks.training_rows import TrainingRows

LINEAR_INITS: dict[bool | str, Initialiser] = {
    True: kaiming_init,
    False: random_init,
    "gaussian": gaussian_init,
    "orthogonal": orthogonal_init,
}
"""How the factors of a projection start, by `init_lora_weights`."""


@dataclass(frozen=True)
class LoraVariant:
    """What all changes of one attachment have in common; `methods.lora.LoraParams` says what each option means.

    Args:
        dropout: of the low-rank branch's input.
        init: `init_lora_weights`.
        decomposition: of a weight, gives the initial pair (PiSSA, OLoRA, LoftQ); None without.
        from_error: the weight is what quantisation took from the base's (LoftQ).
        dora: train magnitudes, too.
        biases: train the targets' biases, too.
        b_ratio: learning rate of B over that of A (LoRA+); None for the same.
        freeze_a: train B alone (LoRA-FA).
    """

    dropout: float = 0.0
    init: bool | str = True
    decomposition: Decomposition | None = None
    from_error: bool = False
    dora: bool = False
    biases: bool = False
    b_ratio: float | None = None
    freeze_a: bool = False


@dataclass(frozen=True)
class LoraPlace:
    """A target and the size of its change: rank r and scale s."""

    target: Target
    rank: int
    scale: float

    @property
    def name(self) -> str:
        """What messages call the target."""
        return self.target.role or self.target.module


@dataclass(kw_only=True)
class LoraAttachment(Attachment):
    """An attachment whose parts are low-rank changes.

    Args:
        b_ratio: as in `LoraVariant`.
        from_inputs: start A from the principal components of the projection's input on training rows (EVA).
    """

    b_ratio: float | None
    from_inputs: bool = False

    def start_from_rows(self, model: nn.Module, rows: TrainingRows) -> None:
        """Start A from the inputs' components, where the variant asks for it; B stays zero."""
        if not self.from_inputs:
            return
        module_of = {target.key: target.module for target in self.targets}
        parts = {placed.key: placed.part for placed in self.placed if isinstance(placed.part, LoraDelta)}
        counts: dict[str, int] = {}
        for key, part in parts.items():
            counts[module_of[key]] = max(part.rank, counts.get(module_of[key], 0))
        found = input_components(model, counts, rows)
        started = [key for key in parts if module_of[key] in found]
        for key in started:
            parts[key].lora_A.weight.copy_(found[module_of[key]][: parts[key].rank])
        rest = f", {len(parts) - len(started)} of them got too few tokens and start at random" * (
            len(started) < len(parts)
        )
        rows.notes.append(f"A of {len(parts)} projections starts from the components of their inputs (EVA){rest}")

    def start_from_stored(self, weights: StoredWeights) -> None:
        """Start from what quantisation took from each weight, where the variant asks for it (LoftQ)."""
        module_of = {target.key: target.module for target in self.targets}
        parts: dict[str, list[LoraDelta]] = {}
        for placed in self.placed:
            if isinstance(placed.part, LoraDelta) and placed.part.from_error:
                parts.setdefault(module_of[placed.key], []).append(placed.part)
        if not parts:
            return
        errors = []
        for module, mine in parts.items():
            if mine[0].base.quantised:
                weight = weights.projection(module)
                errors += [part.start_from_error(weight) for part in mine]
        count = sum(map(len, parts.values()))
        if not errors:
            raise UserError(
                f"none of the {count} projections is quantised, and loftq starts from what quantisation took from them",
                suggestion="set model.load_in_4bit: true, or another method.init_lora_weights",
            )
        before, after = (sum(column) / len(errors) for column in zip(*errors, strict=True))
        rest = f", {count - len(errors)} more are not quantised and start as usual" * (len(errors) < count)
        weights.notes.append(
            f"{len(errors)} projections start from their quantisation error (LoftQ), which falls from {before:.2%} of "
            f"the weight to {after:.2%} on average{rest}"
        )

    def learning_rate_ratios(self) -> dict[str, float]:
        """Return LoRA+'s factor for B and for one-dimensional parameters of the method."""
        if self.b_ratio is None:
            return {}
        beside = {*self.head, *self.to_save}
        mine = {name: parameter for name, parameter in self.trainable_parameters().items() if name not in beside}
        return {name: self.b_ratio for name, parameter in mine.items() if _is_b_group(name, parameter)}


def _is_b_group(name: str, parameter: Tensor) -> bool:
    return name.endswith("lora_B.weight") or parameter.ndim == 1


def attach_lora(model: nn.Module, places: Iterable[LoraPlace], variant: LoraVariant) -> LoraAttachment:
    """Add a part at every place.

    Raises:
        UserError: a rank is above its matrix, or the variant does not fit a target.
    """
    places = list(places)
    attachment = LoraAttachment(
        model,
        targets=[place.target for place in places],
        b_ratio=variant.b_ratio,
        from_inputs=variant.init == "eva",
    )
    reasons: dict[str, None] = {}
    for place in places:
        host = model.get_submodule(place.target.module)
        reason = _why_not(host, place, variant)
        if reason:
            reasons[reason] = None
            continue
        attachment.place(place.target.key, _make_part(host, place, variant), output_site(host).parts)
        if variant.biases:
            _train_bias(attachment, host, place.target)
    if reasons:
        raise UserError("; ".join(reasons), suggestion="change method.r, method.rank_pattern or method.target_modules")
    return attachment


def _why_not(host: nn.Module, place: LoraPlace, variant: LoraVariant) -> str | None:
    if place.target.kind == "embedding":
        if variant.decomposition is not None or variant.init == "orthogonal":
            return f"{variant.init} initialisation is not defined for the embedding {place.target.module}"
        if variant.freeze_a:
            return f"freeze_a leaves the embedding {place.target.module} as it is: its A starts at zero"
        table = BaseTable(host)
        return rank_above_matrix(place.rank, table.rows, table.width, place.name)
    base = base_linear(host, place.target.slice)
    return rank_above_matrix(place.rank, base.out_features, base.in_features, place.name)


def rank_above_matrix(rank: int, d_out: int, d_in: int, what: str) -> str | None:
    """Return why a rank is too large for a matrix (d_out, d_in), or None."""
    limit = min(d_out, d_in)
    if rank <= limit:
        return None
    return f"rank {rank} is above the matrix of {what} ({d_out} x {d_in}); the largest useful r is {limit}"


def _make_part(host: nn.Module, place: LoraPlace, variant: LoraVariant) -> Part:
    if place.target.kind == "embedding":
        init = embedding_random_init if variant.init is False else embedding_init
        return EmbeddingLoraDelta(BaseTable(host), place.rank, place.scale, init=init, magnitude=variant.dora)
    part = DoraDelta if variant.dora else LoraDelta
    return part(
        base_linear(host, place.target.slice),
        place.rank,
        place.scale,
        dropout=variant.dropout,
        init=LINEAR_INITS.get(variant.init, kaiming_init),
        decomposition=variant.decomposition,
        from_error=variant.from_error,
        freeze_a=variant.freeze_a,
    )


def _train_bias(attachment: Attachment, host: nn.Module, target: Target) -> None:
    """Train the bias of a target, or its features' part of a fused projection's; where it has none, nothing."""
    bias = getattr(host, "bias", None)
    if not isinstance(bias, Tensor):
        return
    if target.slice is None:
        train_biases(attachment, [f"{target.module}.bias"])
    else:
        part = BiasDelta(target.slice.features, target.slice, device_beside(bias))
        attachment.place(target.key, part, output_site(host).parts)


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
