"""Compacter and Compacter++ (Karimi Mahabadi et al. 2021, arXiv:2106.04647; code rabeehk/compacter).

As in the official code: z + up(gelu_new(down(z))) inside the branch, after self-attention and after the
feed-forward (not after cross-attention) and before dropout and residual; both projections are sums of Kronecker
products A_i (x) s_i t_i with n = 4 and rank 1; the A_i are shared by all layers and both projections; A ~ N(0,
1e-4), s and t Xavier-uniform with gain sqrt 2; reduction 32; every norm of the base is trained. `placement: ffn` is
Compacter++. `train_layer_norm: false` is AdapterHub's variant (which also uses gelu).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from peftcli.models.config_facts import width
from peftcli.protocol.bottlenecks import BottleneckParams, bottleneck_problems, branches, norm_parameters
from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.method_params import Positive

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

_KINDS = {"both": ("attn", "ffn"), "ffn": ("ffn",)}
_REDUCTION = 32.0


class CompacterParams(BottleneckParams):
    """Hyper-parameters of Compacter."""

    name: Literal["compacter"] = "compacter"
    phm_dim: Positive = 4
    """Kronecker products in a sum, n; the hidden size and the bottleneck must be multiples of it."""
    phm_rank: Positive = 1
    """Rank of the factors of a product."""
    placement: Literal["both", "ffn"] = "both"
    """After attention and feed-forward (Compacter), or after the feed-forward only (Compacter++)."""
    non_linearity: Literal["relu", "gelu", "gelu_new", "silu", "tanh"] = "gelu_new"
    """Between the projections."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the bottleneck's activations."""
    train_layer_norm: bool = True
    """Train the base's norms too, as the paper does."""

    @model_validator(mode="after")
    def _divisible(self) -> CompacterParams:
        if self.bottleneck_size is not None and self.bottleneck_size % self.phm_dim:
            lower = self.bottleneck_size // self.phm_dim * self.phm_dim
            near = f"{lower} or {lower + self.phm_dim}" if lower else str(self.phm_dim)
            raise ValueError(
                f"bottleneck_size = {self.bottleneck_size} is not a multiple of phm_dim = {self.phm_dim}; use {near}"
            )
        return self


class CompacterMethod(Method[CompacterParams]):
    """Compacter and Compacter++."""

    info = MethodInfo(
        name="compacter",
        family="additive",
        summary="Serial adapters whose projections are sums of Kronecker products with shared factors.",
        paper="Karimi Mahabadi et al. 2021, arXiv:2106.04647",
        params=CompacterParams,
        learning_rate=3e-3,
        unmergeable="a Compacter adapter is non-linear and has no equivalent weight change; keep the adapter beside "
        "its base, or use lora if it must be folded in",
    )

    def check(self, anatomy: Anatomy, params: CompacterParams) -> list[str]:
        """Return why phm_dim does not divide this model's hidden size or the bottleneck that follows from it."""
        problems = bottleneck_problems(anatomy, params, _KINDS[params.placement])
        for size in sorted({block.width for block in branches(anatomy, _KINDS[params.placement])}):
            problems += _indivisible(params, size)
        return problems

    def check_config(self, config: Mapping[str, Any], params: CompacterParams) -> list[str]:
        """Return what a config.json says against these hyper-parameters: a phm_dim that does not divide its width."""
        size = width(config)
        return [] if size is None else _indivisible(params, size)

    def attach(self, model: nn.Module, anatomy: Anatomy, params: CompacterParams) -> Attachment:
        """Put one adapter on each branch of the placement, all with one shared rule, and let the norms train."""
        from peftcli.layers.added_modules import ADDED
        from peftcli.layers.parts.bottleneck import SerialAdapter
        from peftcli.layers.parts.phm import PhmLinear, PhmRule
        from peftcli.layers.site import device_of, made_on, output_site
        from peftcli.protocol.attachment import Attachment

        attachment = Attachment(model)
        rule = made_on(device_of(model, model), lambda: PhmRule(params.phm_dim))
        name = f"{ADDED}phm_rule_{sum(child.startswith(f'{ADDED}phm_rule') for child, _ in model.named_children())}"
        model.add_module(name, rule)
        attachment.undo.append(lambda: delattr(model, name))
        attachment.shared["compacter.phm_rule"] = rule.rule
        for block in branches(anatomy, _KINDS[params.placement]):
            host = model.get_submodule(block.exit)
            size = _bottleneck(params, block.width)
            sizes = ((block.width, size), (size, block.width))
            down, up = (
                made_on(device_of(host, model), partial(PhmLinear, rule, *widths, params.phm_rank)) for widths in sizes
            )
            part = SerialAdapter((down, up), params.non_linearity, params.dropout)
            attachment.place(f"{block.exit}.compacter", part, output_site(host).parts)
        if params.train_layer_norm:
            attachment.unfrozen = norm_parameters(model, anatomy)
        return attachment


def _indivisible(params: CompacterParams, size: int) -> list[str]:
    if size % params.phm_dim == 0:
        return []
    fitting = next(n for n in range(params.phm_dim, 0, -1) if size % n == 0)
    return [f"phm_dim = {params.phm_dim} does not divide the hidden size {size}; use {fitting}"]


def _bottleneck(params: CompacterParams, width: int) -> int:
    """Return the bottleneck; one that follows from the hidden size is rounded to a multiple of phm_dim."""
    size = params.size_for(width, _REDUCTION)
    if params.bottleneck_size is not None:
        return size
    return max(params.phm_dim, round(size / params.phm_dim) * params.phm_dim)


METHOD = CompacterMethod()
