"""AdaLoRA: low-rank changes in SVD form whose ranks follow their importance (Zhang et al. 2023, arXiv:2303.10512).

As in the official code (QingruZhang/AdaLoRA): scale alpha / (r_init + 1e-5) however many ranks are left; A and B
drawn from N(0, 0.02), singular values zero; the orthogonality term is the mean over the 2N matrices of the un-squared
Frobenius norm (the paper sums squares); the budget falls by the code's cubic schedule. All linears of the blocks by
default, as there. Phases are given in optimizer steps or left to shares of the run: 10% warm-up, 30% final, a pruning
every 1%.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from peftcli.errors import UserError
from peftcli.models.config_facts import width
from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import NotNegative, Positive, TargetedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

Decay = Annotated[float, Field(gt=0.0, lt=1.0)]


class AdaLoraParams(TargetedParams):
    """Hyper-parameters of AdaLoRA."""

    name: Literal["adalora"] = "adalora"
    init_r: Positive = 12
    """Rank of every matrix at the start."""
    target_r: Positive = 8
    """Mean rank at the end; the ranks of the matrices differ, their sum is target_r times their number."""
    lora_alpha: float = 32.0
    """Numerator of the scale alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of the low-rank branch."""
    target_modules: list[str] | str = "all-linear"
    """Roles (attn.q, ffn.up, attn, ffn), module names, `all-linear`, or one regular expression (a string)."""
    tinit: NotNegative | None = None
    """Optimizer steps before the first pruning; null is 10% of the run."""
    tfinal: NotNegative | None = None
    """Optimizer steps at the end with the final ranks; null is 30% of the run."""
    deltaT: Positive | None = None
    """Optimizer steps between two prunings; null is 1% of the run, at least 1."""
    beta1: Decay = 0.85
    """Decay of the sensitivity's average."""
    beta2: Decay = 0.85
    """Decay of the uncertainty's average."""
    orth_reg_weight: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the orthogonality term; the official scripts use 0.1, HF peft 0.5."""

    @model_validator(mode="after")
    def _target_within_init(self) -> AdaLoraParams:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r is {self.target_r}; expected at most init_r = {self.init_r}")
        return self

    def phases(self, total_steps: int) -> tuple[int, int, int]:
        """Return tinit, tfinal and deltaT for a run of `total_steps`, nulls replaced by their shares."""
        tinit = int(0.1 * total_steps) if self.tinit is None else self.tinit
        tfinal = max(1, int(0.3 * total_steps)) if self.tfinal is None else self.tfinal
        delta_t = max(1, int(0.01 * total_steps)) if self.deltaT is None else self.deltaT
        return tinit, tfinal, delta_t


class AdaLoraMethod(Method[AdaLoraParams]):
    """AdaLoRA."""

    info = MethodInfo(
        name="adalora",
        family="reparameterised",
        summary="Low-rank changes in SVD form; a budget of ranks moves to the matrices that need them.",
        paper="Zhang et al. 2023, arXiv:2303.10512",
        params=AdaLoraParams,
        hf_type="ADALORA",
        plain_lora=True,
        # the official GLUE scripts lie between 5e-4 and 2.2e-3, for thousands of steps; measured on the demo: 1e-3
        # hardly moves within a hundred
        learning_rate=3e-3,
        trains="factors",
    )

    def check_config(self, config: Mapping[str, Any], params: AdaLoraParams) -> list[str]:
        """Return why no projection of this model can carry the rank: each has the residual width on one side."""
        limit = width(config)
        if limit is None or params.init_r <= limit:
            return []
        return [f"init_r = {params.init_r} is above the model's width; the largest useful rank is {limit}"]

    def check_run(self, params: AdaLoraParams, total_steps: int) -> list[str]:
        """Return why the phases do not fit into a run of `total_steps`."""
        tinit, tfinal, _ = params.phases(total_steps)
        given = params.tinit is not None or params.tfinal is not None
        if given and tinit + tfinal >= total_steps:
            sum_of_phases = f"tinit + tfinal is {tinit} + {tfinal}"
            if params.tinit is None:  # a reason starts with what the recipe has
                sum_of_phases = f"tfinal + tinit is {tfinal} + {tinit}"
            return [
                f"{sum_of_phases} = {tinit + tfinal}, but the run has {total_steps} optimizer steps; "
                "expected fewer than that: shorten the phases, leave them null, or train longer"
            ]
        return []

    def attach(self, model: nn.Module, anatomy: Anatomy, params: AdaLoraParams) -> Attachment:
        """Add an `SvdDelta` at each target.

        Raises:
            UserError: a target matches nothing, or init_r is above a matrix's rank.
        """
        from peftcli.attachments.adalora import AdaLoraAttachment
        from peftcli.layers.parts.svd_lora import SvdDelta
        from peftcli.layers.site import output_site
        from peftcli.protocol.narrow_layers import without_narrow
        from peftcli.protocol.projections import projections

        places = projections(model, anatomy, params)
        targets = [target for target, _ in places]
        kept, notes = without_narrow(model, targets, lambda _target: params.init_r, params.target_modules)
        keys = {target.key for target in kept}
        places = [(target, view) for target, view in places if target.key in keys]
        attachment = AdaLoraAttachment(
            model,
            targets=kept,
            init_r=params.init_r,
            target_r=params.target_r,
            betas=(params.beta1, params.beta2),
            orthogonality=params.orth_reg_weight,
            phases=params.phases,
        )
        attachment.notes += notes
        for target, view in places:
            largest = min(view.in_features, view.out_features)
            if params.init_r > largest:
                raise UserError(
                    f"method.init_r is {params.init_r}, but {target.key} is {view.out_features} x {view.in_features}",
                    suggestion=f"use init_r of at most {largest}, or leave that module out with exclude_modules",
                )
            part = SvdDelta(
                params.init_r,
                view.in_features,
                view.out_features,
                alpha=params.lora_alpha,
                dropout=params.lora_dropout,
                slice=target.slice,
                device=view.device,
            )
            attachment.place(target.key, part, output_site(view.module).parts)
        return attachment

    def merge_rules(self, anatomy: Anatomy, params: AdaLoraParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that add each place's product of the ranks that were kept."""
        from peftcli.layers.parts.svd_lora import TRIPLET, svd_scale

        scale = svd_scale(params.lora_alpha, params.init_r)
        folding = Folding(anatomy)
        for key, tensors in tensors_by_key(state, TRIPLET).items():

            def change(weight: Tensor, tensors: dict[str, Tensor] = tensors) -> Tensor:
                a, e, b = (tensors[suffix].float() for suffix in TRIPLET)
                return weight.addmm_(b, a * e, alpha=scale)

            folding.change_weight(key, change)
        return folding.rules()


METHOD = AdaLoraMethod()
