"""MiSS: matrix shard sharing (Kang & Yin 2024, arXiv:2409.15371, first called Bone; HF peft's code).

y = W x + b + D^T (sum of the shards of dropout(x)): the input is cut into shards of r features, and one trained
D: (r, d_out), which starts at zero, serves them all. The change has rank r at most and needs half of LoRA's
parameters. `mini` repeats a narrower D over the outputs; `bat` (the paper's Bat) multiplies each block (r, r) of the
frozen weight by a trained block, a change of full rank. There is no scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftcli.errors import UserError
from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.protocol.target_patterns import Rank
from peftcli.recipe.method_params import TargetedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.layers.base_linear import BaseLinear
    from peftcli.layers.site import Part
    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class MissParams(TargetedParams):
    """Hyper-parameters of MiSS."""

    name: Literal["miss"] = "miss"
    r: Rank = 64
    """Features of a shard of the input, and the largest rank of the change."""
    miss_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of the change; `bat` has none."""
    mini_r: Rank = 1
    """Trained columns with `init_weights: mini`; it divides the outputs of every target."""
    init_weights: bool | Literal["bat", "mini"] = True
    """true, bat (full rank, slower), mini (fewer columns), or false (no identity at the start)."""

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others."""
        idle = {}
        if self.init_weights != "mini":
            idle["mini_r"] = "init_weights is not mini"
        if self.init_weights == "bat":
            idle["miss_dropout"] = "bat changes the weight itself"
        return idle


class MissMethod(Method[MissParams]):
    """MiSS."""

    info = MethodInfo(
        name="miss",
        family="reparameterised",
        summary="Adds one trained block that all shards of a projection's input share; half of LoRA's parameters.",
        paper="Kang & Yin 2024, arXiv:2409.15371",
        params=MissParams,
        hf_type="MISS",
        learning_rate=2e-3,  # measured on the demo
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: MissParams) -> Attachment:
        """Add a part at each target.

        Raises:
            UserError: a target matches nothing, r is above its inputs, or r or mini_r does not divide what it must.
        """
        from peftcli.layers.site import output_site
        from peftcli.protocol.attachment import Attachment
        from peftcli.protocol.projections import projections

        places = projections(model, anatomy, params)
        attachment = Attachment(model, targets=[target for target, _ in places])
        reasons: dict[str, None] = {}
        for target, view in places:
            reason = _why_not(view, params)
            if reason:
                reasons[f"{target.role or target.module}: {reason}"] = None
                continue
            attachment.place(target.key, _part(view, params), output_site(view.module).parts)
        if reasons:
            raise UserError("; ".join(reasons), suggestion="change method.r, mini_r or target_modules")
        return attachment

    def why_not_identity(self, params: MissParams) -> str | None:
        """Return that the blocks start at random, where the recipe says so."""
        return "the blocks start at random (init_weights: false)" if params.init_weights is False else None

    def merge_rules(self, anatomy: Anatomy, params: MissParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that add the shared block to every shard of the weights; bat: the change of every block."""
        from peftcli.layers.weight_changes.block_sums import affine_change, shared_change

        folding = Folding(anatomy)
        for key, tensors in tensors_by_key(state, ("miss_block",)).items():

            def change(weight: Tensor, block: Tensor = tensors["miss_block"]) -> Tensor:
                if block.ndim == 3:
                    return weight + affine_change(weight, block.to(weight))
                return weight.add_(shared_change(block.to(weight), *weight.shape))

            folding.change_weight(key, change)
        return folding.rules()


def _why_not(view: BaseLinear, params: MissParams) -> str | None:
    """Return why a projection cannot be cut as the hyper-parameters want it, or None."""
    size = f"{view.out_features} x {view.in_features}"
    if params.r > view.in_features:
        return f"r {params.r} is above its {view.in_features} inputs"
    if params.init_weights == "bat" and (view.in_features % params.r or view.out_features % params.r):
        return f"bat cuts it into blocks of r x r, and r {params.r} does not divide its {size}"
    if params.init_weights == "mini" and view.out_features % params.mini_r:
        return f"mini_r {params.mini_r} does not divide its {view.out_features} outputs"
    return None


def _part(view: BaseLinear, params: MissParams) -> Part:
    from peftcli.layers.weight_changes.block_sums import BlockAffine, BlockSums

    if params.init_weights == "bat":
        return BlockAffine(view, params.r)
    return BlockSums(
        view,
        params.r,
        columns=params.mini_r if params.init_weights == "mini" else None,
        dropout=params.miss_dropout,
        random=params.init_weights is False,
    )


METHOD = MissMethod()
