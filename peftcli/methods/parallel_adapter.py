"""Parallel adapters (He et al. 2021, arXiv:2110.04366; code jxhe/unify-parameter-efficient-tuning).

As in the official code: y = branch(x) + s * up(relu(down(x))) with x the branch's input (after a pre-norm, where
there is one), added before the residual sum; dropout on the bottleneck; Kaiming-uniform down, zero up, zero biases;
s = 4 for BART, 2 for the RoBERTa runs: so it is here by kind of model (4 in an encoder is unsteady on the demo).
`placement: ffn` is the paper's best; `attn` and `both` are its ablations (self- and cross-attention). Norms stay
frozen. AdapterHub's variant is `reduction_factor: 2, scaling: 4, dropout: 0`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftcli.protocol.bottlenecks import BottleneckParams, bottleneck_problems, branches
from peftcli.protocol.method import Method, MethodInfo

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

_KINDS = {"ffn": ("ffn",), "attn": ("attn", "cross_attn"), "both": ("attn", "cross_attn", "ffn")}
_REDUCTION = 16.0


class ParallelAdapterParams(BottleneckParams):
    """Hyper-parameters of parallel adapters."""

    name: Literal["parallel_adapter"] = "parallel_adapter"
    placement: Literal["ffn", "attn", "both"] = "ffn"
    """Beside the feed-forward, the attention, or both."""
    scaling: Annotated[float, Field(gt=0.0)] | None = None
    """Factor on the adapter's output; null is the official runs': 2 in encoder-only models, 4 in others."""
    non_linearity: Literal["relu", "gelu", "gelu_new", "silu", "tanh"] = "relu"
    """Between the projections."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout on the bottleneck's activations; the official code takes the base model's, 0.1 in its models."""

    def scaling_in(self, anatomy: Anatomy) -> float:
        """Return the factor in this model."""
        return self.scaling or (4.0 if "decoder" in anatomy.layers else 2.0)


class ParallelAdapterMethod(Method[ParallelAdapterParams]):
    """Parallel adapters."""

    info = MethodInfo(
        name="parallel_adapter",
        family="additive",
        summary="A scaled bottleneck network beside the feed-forward or the attention.",
        paper="He et al. 2021, arXiv:2110.04366",
        params=ParallelAdapterParams,
        learning_rate=2e-3,  # measured on the demo: 1e-3 is slow within a few hundred steps
        unmergeable="a parallel adapter is non-linear and has no equivalent weight change; keep the adapter beside its "
        "base, or use lora if it must be folded in",
    )

    def check(self, anatomy: Anatomy, params: ParallelAdapterParams) -> list[str]:
        """Return why this model cannot carry these adapters."""
        return bottleneck_problems(anatomy, params, _KINDS[params.placement])

    def attach(self, model: nn.Module, anatomy: Anatomy, params: ParallelAdapterParams) -> Attachment:
        """Put one adapter beside each branch of the placement."""
        from peftcli.layers.parts.bottleneck import ParallelAdapter, linear_pair
        from peftcli.layers.site import device_of, made_on, output_site
        from peftcli.protocol.attachment import Attachment

        attachment = Attachment(model)
        for block in branches(anatomy, _KINDS[params.placement]):
            host = model.get_submodule(block.exit)
            size = params.size_for(block.width, _REDUCTION)
            pair = made_on(device_of(host, model), partial(linear_pair, block.width, size, "lora"))
            part = ParallelAdapter(pair, params.non_linearity, params.dropout, params.scaling_in(anatomy))
            site = output_site(host, entry=model.get_submodule(block.entry))
            attachment.place(f"{block.exit}.parallel_adapter", part, site.parts)
        return attachment


METHOD = ParallelAdapterMethod()
