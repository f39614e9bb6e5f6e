"""VeRA: vector-based random matrix adaptation (Kopiczko et al. 2023, arXiv:2310.11454; HF peft's code).

y += lambda_b * B (lambda_d * A x): A and B are random, frozen, shared by all places and drawn again from
`projection_prng_key`, so that only the two vectors of each place are trained and saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftcli.errors import UserError
from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import Positive, Seed, TargetedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class VeraParams(TargetedParams):
    """Hyper-parameters of VeRA."""

    name: Literal["vera"] = "vera"
    r: Positive = 256
    """Rank of the shared random matrices; it may exceed the layers' sizes."""
    projection_prng_key: Seed = 0
    """Seed of the shared random matrices, which are not saved."""
    d_initial: float = 0.1
    """Start of the vector between A and B."""
    vera_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of the random branch."""


class VeraMethod(Method[VeraParams]):
    """VeRA."""

    info = MethodInfo(
        name="vera",
        family="reparameterised",
        summary="Trains two scaling vectors around frozen random low-rank matrices that all layers share.",
        paper="Kopiczko et al. 2023, arXiv:2310.11454",
        params=VeraParams,
        hf_type="VERA",
        learning_rate=2e-2,  # the paper's GLUE runs take 4e-3 to 1e-2, for tens of epochs; measured on the demo
        trains="vectors",
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: VeraParams) -> Attachment:
        """Add a `VeraDelta` at each target, all sharing one pair of random matrices.

        Raises:
            UserError: a target matches nothing.
        """
        from peftcli.layers.parts.vera import SharedProjections, VeraDelta
        from peftcli.layers.site import output_site
        from peftcli.protocol.attachment import Attachment
        from peftcli.protocol.projections import projections

        places = projections(model, anatomy, params)
        views = [view for _, view in places]
        shared = SharedProjections(
            params.r,
            max(view.in_features for view in views),
            max(view.out_features for view in views),
            params.projection_prng_key,
            views[0].device,
        )
        attachment = Attachment(model, targets=[target for target, _ in places])
        for target, view in places:
            part = VeraDelta(
                shared,
                view.in_features,
                view.out_features,
                d_initial=params.d_initial,
                dropout=params.vera_dropout,
                slice=target.slice,
                device=view.device,
            )
            attachment.place(target.key, part, output_site(view.module).parts)
        return attachment

    def merge_rules(self, anatomy: Anatomy, params: VeraParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that add each place's product; the random matrices are drawn again."""
        from peftcli.layers.parts.vera import random_projections

        groups = tensors_by_key(state, _SUFFIXES)
        d_in = max(_in_features(anatomy, key) for key in groups)
        d_out = max(tensors["vera_lambda_b"].numel() for tensors in groups.values())
        a, b = random_projections(params.r, d_in, d_out, params.projection_prng_key)
        folding = Folding(anatomy)
        for key, tensors in groups.items():

            def change(weight: Tensor, tensors: dict[str, Tensor] = tensors) -> Tensor:
                lambda_b, lambda_d = tensors["vera_lambda_b"], tensors["vera_lambda_d"]
                d_out, d_in = weight.shape
                return weight.addmm_(lambda_b.float()[:, None] * b[:d_out], lambda_d.float()[:, None] * a[:, :d_in])

            folding.change_weight(key, change)
        return folding.rules()


_SUFFIXES = ("vera_lambda_b", "vera_lambda_d")


def _in_features(anatomy: Anatomy, key: str) -> int:
    """Return the input width at `key`: the shape of A, and so its numbers, depends on the largest."""
    for linear in anatomy.linears:
        if key in (linear.key, linear.module):
            return linear.in_features
    raise UserError(
        f"VeRA at {key}, which is no projection inside a block, cannot be merged",
        suggestion="keep the adapter, or train with target_modules given as roles",
    )


METHOD = VeraMethod()
