"""The torch half of LoRA: parts at targets, their learning rates, and the changes that a merge makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from peftcli.attachments.input_components import Asked, input_components
from peftcli.errors import UserError
from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.part_device import device_beside
from peftcli.layers.parts.bias import BiasDelta
from peftcli.layers.parts.dora import DoraDelta
from peftcli.layers.parts.lora import LoraDelta
from peftcli.layers.parts.lora_embedding import EmbeddingDoraDelta, EmbeddingLoraDelta
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
from peftcli.layers.parts.magnitude import rescaling
from peftcli.layers.site import Part, output_site
from peftcli.models.targets.target import Target, summarise_ranks
from peftcli.models.weights.stored_weights import StoredWeights
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.target_patterns import lora_scale
from peftcli.protocol.trained_biases import train_biases
from peftcli.recipe.method_params import MethodParams
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
        rho: the largest rank that EVA may give a projection, over the rank that it has; 1 where ranks stay.
        rank_stabilised: s is alpha / sqrt(r), not alpha / r.
    """

    dropout: float = 0.0
    init: bool | str = True
    decomposition: Decomposition | None = None
    from_error: bool = False
    dora: bool = False
    biases: bool = False
    b_ratio: float | None = None
    freeze_a: bool = False
    rho: float = 1.0
    rank_stabilised: bool = False

    def scale_of(self, place: LoraPlace) -> float:
        """Return s of a place."""
        return lora_scale(place.alpha, place.rank, rank_stabilised=self.rank_stabilised)


@dataclass(frozen=True)
class LoraPlace:
    """A target, and the rank and alpha of its change; of rank 0, it has none."""

    target: Target
    rank: int
    alpha: float

    @property
    def name(self) -> str:
        """What messages call the target."""
        return self.target.role or self.target.module


@dataclass(kw_only=True)
class LoraAttachment(Attachment):
    """An attachment whose parts are low-rank changes.

    Args:
        variant: what they have in common.
        places: by the targets' keys; those that EVA gave rank 0 stay in it.
    """

    variant: LoraVariant
    places: dict[str, LoraPlace]
    _moved: bool = field(default=False, init=False)

    def start_from_rows(self, model: nn.Module, rows: TrainingRows) -> None:
        """Start A from the inputs' components, and move ranks by them, where the variant asks for it; B stays zero."""
        if self.variant.init != "eva":
            return
        parts = {placed.key: placed.part for placed in self.placed if isinstance(placed.part, LoraDelta)}
        found = input_components(model, {key: self._asked(key, part) for key, part in parts.items()}, rows)
        ranks: dict[str, int] = rows.agreed({key: each.rank for key, each in found.items()})
        moved = [key for key, rank in ranks.items() if rank != self.places[key].rank]
        for key in moved:
            self._move(key, parts[key], ranks[key])
        for key, rank in ranks.items():
            if rank:
                parts[key].lora_A.weight.copy_(found[key].components[:rank])
        few = len(parts) - len(ranks)
        rest = f", {few} of them got too few tokens and start at random" * bool(few)
        rows.notes.append(f"A of {len(parts)} projections starts from the components of their inputs (EVA){rest}")
        if moved:
            rows.notes.append(f"ranks follow the variance that the components explain (EVA): {self._told(ranks)}")

    def _asked(self, key: str, part: LoraDelta) -> Asked:
        limit = min(part.base.in_features, part.base.out_features)
        most = part.rank if self.variant.rho == 1 else min(round(part.rank * self.variant.rho), limit)
        return Asked(self.places[key].target.module, part.rank, most, limit)

    def _move(self, key: str, part: LoraDelta, rank: int) -> None:
        """Give a part another rank; its alpha changes in proportion, as HF peft's `adjust_scaling_factors` does it."""
        self._moved = True
        place = self.places[key]
        place = self.places[key] = replace(place, rank=rank, alpha=place.alpha * (rank / place.rank))
        if rank:
            part.change_rank(rank, self.variant.scale_of(place))
            return
        self._drop(key)
        bias = f"{place.target.module}.bias"
        if self.variant.biases and bias in self.unfrozen:
            self.unfrozen.remove(bias)
            self.model.get_parameter(bias).requires_grad_(False)

    def _told(self, ranks: Mapping[str, int]) -> str:
        """Return the ranks of each role, and how many targets have none."""
        told = summarise_ranks((self.places[key].target, rank) for key, rank in ranks.items())
        without = sum(rank == 0 for rank in ranks.values())
        none = f"; {without} of {len(ranks)} projections have none and get no adapter" * bool(without)
        return f"{told}, {sum(ranks.values())} together as before{none}"

    def params_now(self, params: MethodParams) -> MethodParams:
        """Return the hyper-parameters with the ranks and alphas that EVA gave, by the targets' keys."""
        if not self._moved:
            return params
        ranks = {f"^{re.escape(key)}": place.rank for key, place in self.places.items()}
        alphas = {f"^{re.escape(key)}": place.alpha for key, place in self.places.items() if place.rank}
        return params.model_copy(update={"rank_pattern": ranks, "alpha_pattern": alphas})

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
        ratio = self.variant.b_ratio
        if ratio is None:
            return {}
        beside = {*self.head, *self.to_save}
        mine = {name: parameter for name, parameter in self.trainable_parameters().items() if name not in beside}
        return {name: ratio for name, parameter in mine.items() if _is_b_group(name, parameter)}


def _is_b_group(name: str, parameter: Tensor) -> bool:
    return name.endswith("lora_B.weight") or parameter.ndim == 1


def attach_lora(model: nn.Module, places: Iterable[LoraPlace], variant: LoraVariant) -> LoraAttachment:
    """Add a part at every place.

    Raises:
        UserError: a rank is above its matrix, or the variant does not fit a target.
    """
    places = [place for place in places if place.rank]
    attachment = LoraAttachment(
        model,
        targets=[place.target for place in places],
        variant=variant,
        places={place.target.key: place for place in places},
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
    base = BaseLinear(host, place.target.slice)
    return rank_above_matrix(place.rank, base.out_features, base.in_features, place.name)


def rank_above_matrix(rank: int, d_out: int, d_in: int, what: str) -> str | None:
    """Return why a rank is too large for a matrix (d_out, d_in), or None."""
    limit = min(d_out, d_in)
    if rank <= limit:
        return None
    return f"rank {rank} is above the matrix of {what} ({d_out} x {d_in}); the largest useful r is {limit}"


def _make_part(host: nn.Module, place: LoraPlace, variant: LoraVariant) -> Part:
    scale = variant.scale_of(place)
    if place.target.kind == "embedding":
        init = embedding_random_init if variant.init is False else embedding_init
        kind = EmbeddingDoraDelta if variant.dora else EmbeddingLoraDelta
        return kind(BaseTable(host), place.rank, scale, init=init)
    part = DoraDelta if variant.dora else LoraDelta
    return part(
        BaseLinear(host, place.target.slice),
        place.rank,
        scale,
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
            weight.mul_(rescaling(own["lora_magnitude_vector"], norm).unsqueeze(1))
        return weight

    return change


def embedding_change(tensors: Mapping[str, Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """Return the change of a table (vocab, d) that saved embedding tensors stand for."""

    def change(table: Tensor) -> Tensor:
        own = {suffix: tensor.to(table) for suffix, tensor in tensors.items()}
        table.addmm_(own["lora_embedding_A"].T, own["lora_embedding_B"].T, alpha=scale)
        if "lora_magnitude_vector" in own:
            table.mul_(rescaling(own["lora_magnitude_vector"], torch.linalg.vector_norm(table, dim=0)))
        return table

    return change
