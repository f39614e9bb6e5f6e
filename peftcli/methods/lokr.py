"""LoKr: Kronecker products as changes of weights (Yeh et al. 2023, arXiv:2309.14859; KronA: 2022, arXiv:2212.10650).

y = W x + b + s (W1 (x) W2) x with s = alpha / r. W1 and W2 have the sizes of a pair of divisors of the outputs and of
the inputs; W2 is itself a product of rank r where r is below half of its longer side, and with `decompose_both` W1 is,
too. The change can have full rank with few parameters. The product is never written out: x is seen as a matrix. The
start is HF peft's: W1 zero; LyCORIS's is `init_weights: lycoris`, W2 zero. Convolutions are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.protocol.target_patterns import Alpha, AlphaPattern, Rank, RankPattern, pick, refuse_idle_patterns
from peftcli.recipe.method_params import TargetedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

Share = Annotated[float, Field(ge=0.0, lt=1.0)]

SUFFIXES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
"""The tensors of one place; each of the two matrices is there whole or as a pair."""


class LoKrParams(TargetedParams):
    """Hyper-parameters of LoKr."""

    name: Literal["lokr"] = "lokr"
    r: Rank = 8
    """Rank of the second matrix; where it is at least half of its longer side, the matrix is trained whole."""
    alpha: Alpha = 8
    """The change is scaled by alpha / r."""
    rank_dropout: Share = 0.0
    """Share of the output features that change nothing in a training step."""
    rank_dropout_scale: bool = False
    """Make up for `rank_dropout` in the features that are left."""
    module_dropout: Share = 0.0
    """How often a projection's whole change is left out of a training step."""
    decompose_both: bool = False
    """Give the first matrix a low rank, too, where r is below half of its longer side."""
    decompose_factor: int = -1
    """Size of the smaller matrix: this divisor of the widths, or the largest below it; -1: nearest to a square."""
    init_weights: bool | Literal["lycoris"] = True
    """true (the first matrix zero), lycoris (the second one), or false (no identity at the start)."""
    rank_pattern: RankPattern = Field(default_factory=dict)
    """Other ranks, by role or by regular expression on the end of a module path; the first match counts."""
    alpha_pattern: AlphaPattern = Field(default_factory=dict)
    """Other values of alpha, likewise."""

    @field_validator("decompose_factor")
    @classmethod
    def _a_factor(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError(f"{value} is no divisor; expected -1, or a whole number above 0")
        return value

    def rank_of(self, role: str | None, module: str) -> int:
        """Return the rank of a target: its role, and its path (a slice's key)."""
        return pick(self.rank_pattern, role, module, self.r)

    def alpha_of(self, role: str | None, module: str) -> float:
        """Return alpha of a target, likewise."""
        return pick(self.alpha_pattern, role, module, self.alpha)

    def scale_of(self, role: str | None, module: str) -> float:
        """Return s of a target."""
        return self.alpha_of(role, module) / self.rank_of(role, module)

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others."""
        return {} if self.rank_dropout else {"rank_dropout_scale": "rank_dropout is 0"}


class LoKrMethod(Method[LoKrParams]):
    """LoKr."""

    info = MethodInfo(
        name="lokr",
        family="reparameterised",
        summary="Adds a trained Kronecker product of two small matrices to chosen projections.",
        paper="Yeh et al. 2023, arXiv:2309.14859; Edalati et al. 2022, arXiv:2212.10650",
        params=LoKrParams,
        hf_type="LOKR",
        learning_rate=1e-2,  # measured on the demo
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: LoKrParams) -> Attachment:
        """Add a part at each target.

        Raises:
            UserError: a target or a pattern matches nothing.
        """
        from peftcli.layers.site import output_site
        from peftcli.layers.weight_changes.kronecker import KroneckerDelta, Start
        from peftcli.protocol.attachment import Attachment
        from peftcli.protocol.projections import projections

        places = projections(model, anatomy, params)
        targets = [target for target, _ in places]
        refuse_idle_patterns(targets, {"rank_pattern": params.rank_pattern, "alpha_pattern": params.alpha_pattern})
        starts: dict[bool | str, Start] = {True: "default", False: "random", "lycoris": "lycoris"}
        attachment = Attachment(model, targets=targets)
        for target, view in places:
            part = KroneckerDelta(
                view,
                params.rank_of(target.role, target.key),
                params.scale_of(target.role, target.key),
                factor=params.decompose_factor,
                decompose_both=params.decompose_both,
                rank_dropout=params.rank_dropout,
                rank_dropout_scale=params.rank_dropout_scale,
                module_dropout=params.module_dropout,
                start=starts[params.init_weights],
            )
            attachment.place(target.key, part, output_site(view.module).parts)
        return attachment

    def why_not_identity(self, params: LoKrParams) -> str | None:
        """Return that all matrices start at random, where the recipe says so."""
        return "all matrices start at random (init_weights: false)" if params.init_weights is False else None

    def merge_rules(self, anatomy: Anatomy, params: LoKrParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that add each Kronecker product."""
        import torch

        from peftcli.layers.weight_changes.kronecker import kronecker_factors

        folding = Folding(anatomy)
        roles = {linear.key: linear.role for linear in anatomy.linears}
        for key, tensors in tensors_by_key(state, SUFFIXES).items():

            def change(weight: Tensor, own: dict[str, Tensor] = tensors, key: str = key) -> Tensor:
                first, second = kronecker_factors({name: tensor.to(weight) for name, tensor in own.items()})
                return weight.add_(torch.kron(first, second), alpha=params.scale_of(roles.get(key), key))

            folding.change_weight(key, change)
        return folding.rules()


METHOD = LoKrMethod()
