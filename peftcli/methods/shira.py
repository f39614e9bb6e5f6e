"""SHiRA: sparse high-rank adapters (Bhardwaj et al. 2024, arXiv:2406.13175; HF peft's code).

y = (W + S) x + b, with S zero but at r (d_in + d_out) places: as many trained values as LoRA of rank r, and a change of
high rank that touches one or two percent of the weights. The places are random (the paper's SHiRA-Rand, and HF peft's)
or those of the largest weights (SHiRA-WM), and are saved with the values. S starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from peftcli.errors import UserError
from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.protocol.target_patterns import Rank
from peftcli.recipe.method_params import Seed, TargetedParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class ShiraParams(TargetedParams):
    """Hyper-parameters of SHiRA."""

    name: Literal["shira"] = "shira"
    r: Rank = 32
    """Trained values of a projection: r times the sum of its inputs and outputs, as in LoRA."""
    mask_type: Literal["random", "magnitude"] = "random"
    """Where they lie: at random, or at the weights of the largest magnitude."""
    random_seed: Seed | None = None
    """Seed of the random places; projections of one shape have the same ones."""
    init_weights: bool = True
    """Start at zero; false starts from random values, for tests."""

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others."""
        return {} if self.mask_type == "random" else {"random_seed": "the places are those of the largest weights"}


class ShiraMethod(Method[ShiraParams]):
    """SHiRA."""

    info = MethodInfo(
        name="shira",
        family="selective",
        summary="Trains single entries of chosen weights: few, spread over the matrix, and of high rank together.",
        paper="Bhardwaj et al. 2024, arXiv:2406.13175",
        params=ShiraParams,
        hf_type="SHIRA",
        learning_rate=4e-3,  # measured on the demo
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: ShiraParams) -> Attachment:
        """Add a part at each target.

        Raises:
            UserError: a target matches nothing, or r asks for more values than a weight has.
        """
        from peftcli.attachments.shira import ShiraAttachment
        from peftcli.layers.site import output_site
        from peftcli.layers.weight_changes.sparse import SparseDelta
        from peftcli.protocol.projections import projections

        places = projections(model, anatomy, params)
        attachment = ShiraAttachment(model, targets=[target for target, _ in places])
        reasons: dict[str, None] = {}
        drawn: dict[tuple[int, int], Tensor] = {}
        for target, view in places:
            d_out, d_in = shape = (view.out_features, view.in_features)
            if params.r * (d_out + d_in) > d_out * d_in:
                most = d_out * d_in // (d_out + d_in)
                reasons[
                    f"{target.role or target.module} ({d_out} x {d_in}) has fewer weights than r {params.r} asks for; "
                    f"the largest r is {most}"
                ] = None
                continue
            if shape not in drawn:
                drawn[shape] = _places(params, d_out, d_in, view.device)
            part = SparseDelta(
                view, drawn[shape], largest=params.mask_type == "magnitude", random=not params.init_weights
            )
            attachment.place(target.key, part, output_site(view.module).parts)
        if reasons:
            raise UserError("; ".join(reasons), suggestion="change method.r or method.target_modules")
        return attachment

    def why_not_identity(self, params: ShiraParams) -> str | None:
        """Return that the values start at random, where the recipe says so."""
        return "the values start at random (init_weights: false)" if params.init_weights is False else None

    def merge_rules(self, anatomy: Anatomy, params: ShiraParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that add the values at their places."""
        from peftcli.attachments.shira import check_places

        folding = Folding(anatomy)
        for key, tensors in tensors_by_key(state, ("shira_weight", "shira_indices")).items():

            def change(weight: Tensor, own: dict[str, Tensor] = tensors, key: str = key) -> Tensor:
                check_places(key, own["shira_indices"], *weight.shape)
                rows, columns = own["shira_indices"].long()
                return weight.index_put_((rows, columns), own["shira_weight"].to(weight), accumulate=True)

            folding.change_weight(key, change)
        return folding.rules()


def _places(params: ShiraParams, d_out: int, d_in: int, device: torch.device) -> Tensor:
    """Return the places of a shape; on meta, and where the weights will choose them, only as many."""
    import torch

    from peftcli.layers.weight_changes.sparse import random_places

    count = params.r * (d_out + d_in)
    if device.type == "meta" or params.mask_type == "magnitude":
        return torch.zeros(2, count, dtype=torch.int32, device=device)
    return random_places(d_out, d_in, count, params.random_seed)


METHOD = ShiraMethod()
