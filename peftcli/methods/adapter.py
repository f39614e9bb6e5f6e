"""Serial bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247).

`placement: houlsby` follows google-research/adapter-bert: two adapters per layer (three with cross-attention), at
the end of each branch and before the residual sum; h + up(gelu(down(h))); truncated normal of deviation 1e-3; every
LayerNorm of the base is trained too, and BERT's pooler is not. Deviation: the branch's own dropout acts after the
adapter, not before. AdapterHub's variant of it (swish, no trained norms) is `non_linearity: silu, train_layer_norm:
false, init: pfeiffer`.

`placement: pfeiffer` follows AdapterHub: one adapter per layer after the feed-forward, relu, N(0, 0.02), norms
frozen. In post-norm models (BERT, BART) its input is LN(branch + residual), its residual is the sum before that
norm, and the same pretrained norm follows: LN(z + up(relu(down(LN(z))))). `norm_before: false` feeds it z itself.
In pre-norm models there is no norm after the sum: the adapter is at the end of the branch, without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftcli.protocol.bottlenecks import BottleneckParams, bottleneck_problems, branches, norm_parameters
from peftcli.protocol.method import Method, MethodInfo

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy, BlockRole
    from peftcli.protocol.attachment import Attachment

_KINDS = {"houlsby": ("attn", "cross_attn", "ffn"), "pfeiffer": ("ffn",)}
_REDUCTION = 16.0  # Pfeiffer et al.; Houlsby et al. sweep 8 to 256 numbers


class AdapterParams(BottleneckParams):
    """Hyper-parameters of serial adapters."""

    name: Literal["adapter"] = "adapter"
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """houlsby: after attention and feed-forward; pfeiffer: after the feed-forward only."""
    non_linearity: Literal["relu", "gelu", "gelu_new", "silu", "tanh"] | None = None
    """Between the projections; null is the paper's: gelu for houlsby, relu for pfeiffer."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the bottleneck's activations."""
    train_layer_norm: bool | None = None
    """Train the base's norms too; null is the paper's: true for houlsby, false for pfeiffer."""
    norm_before: bool = True
    """pfeiffer in post-norm models: the adapter sees the normalised sum; false gives it the sum itself."""
    init: Literal["houlsby", "pfeiffer"] | None = None
    """Initial weights: houlsby is truncated N(0, 1e-3), pfeiffer N(0, 0.02); null is the placement's."""


class AdapterMethod(Method[AdapterParams]):
    """Serial bottleneck adapters."""

    info = MethodInfo(
        name="adapter",
        family="additive",
        summary="Small bottleneck networks in series with each residual branch.",
        paper="Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247",
        params=AdapterParams,
        learning_rate=2e-3,  # measured on the demo: 1e-3 is slow within a few hundred steps
        unmergeable="a serial adapter is non-linear and has no equivalent weight change; keep the adapter beside its "
        "base, or use lora if it must be folded in",
    )

    def check(self, anatomy: Anatomy, params: AdapterParams) -> list[str]:
        """Return why this model cannot carry these adapters."""
        return bottleneck_problems(anatomy, params, _KINDS[params.placement])

    def attach(self, model: nn.Module, anatomy: Anatomy, params: AdapterParams) -> Attachment:
        """Put one adapter on each branch of the placement, and let the norms train where the paper does."""
        from peftcli.protocol.attachment import Attachment

        attachment = Attachment(model)
        for block in branches(anatomy, _KINDS[params.placement]):
            _place(attachment, block, params)
        trains_norms = params.train_layer_norm
        if trains_norms if trains_norms is not None else params.placement == "houlsby":
            attachment.unfrozen = norm_parameters(model, anatomy)
        return attachment


def _place(attachment: Attachment, block: BlockRole, params: AdapterParams) -> None:
    """Add the adapter of one branch."""
    from peftcli.layers.parts.bottleneck import SerialAdapter, linear_pair
    from peftcli.layers.site import device_of, input_site, made_on, output_site

    act = params.non_linearity or ("gelu" if params.placement == "houlsby" else "relu")
    after_sum = params.placement == "pfeiffer" and block.post_norm is not None
    model = attachment.model
    host = model.get_submodule(block.post_norm if after_sum and block.post_norm else block.exit)
    size, init = params.size_for(block.width, _REDUCTION), params.init or params.placement
    pair = made_on(device_of(host, model), lambda: linear_pair(block.width, size, init))
    norm = host if after_sum and params.norm_before else None
    part = SerialAdapter(pair, act, params.dropout, norm)
    site = input_site(host) if after_sum else output_site(host)
    attachment.place(f"{block.exit}.adapter", part, site.parts)


METHOD = AdapterMethod()
