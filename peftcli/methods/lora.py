"""LoRA: low-rank changes of chosen projections (Hu et al. 2021, arXiv:2106.09685), with its usual variants.

y = W x + b + s B A dropout(x); s = alpha / r, or alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2023). Only A and B
are trained; dropout acts on the low-rank branch alone. Reference: microsoft/LoRA; the defaults are its RoBERTa scripts'
(r 8, alpha 16, q and v; the paper's appendix has alpha 8).

Variants, and where they differ from their papers or from HF peft:

- DoRA (Liu et al. 2024): `use_dora`; the norm is constant to autograd, as in the official code's `dora_simple`.
- PiSSA (Meng et al. 2024): `init_lora_weights: pissa`. The base stays as it is, the initial product is subtracted
  beside it (HF peft rewrites the base). It is saved as a plain LoRA of rank 2r, [A; A0] and [B, -B0], that any loader
  can put on the original base, and splits again without loss.
- OLoRA (Buyukakyuz 2024): `init_lora_weights: olora` starts from the QR decomposition of the weight, B = Q_r and
  A = R_r; the rest is as with PiSSA. On Conv1D it decomposes the weight as (out, in), like any other (HF peft: as
  stored, so that the factors have other shapes there).
- EVA (Paischer et al. 2024): `init_lora_weights: eva` starts A from the principal components of the projection's input
  on training rows, read until the components stand still (cosine 0.99); B is zero. With `rho` above 1 ranks move to
  the components that explain the largest share of the variance of their input; the sum stays, a projection has at most
  rho x r, and one that gets 0 has no adapter. Alpha moves in proportion (HF peft's `adjust_scaling_factors`), so that
  alpha / r stays. What gets no token, and embeddings, start as usual, with the rank that they
  have. A run that goes on reads nothing again.
- LoftQ (Li et al. 2023): `init_lora_weights: loftq` on a base that is quantised while it is loaded. s B A starts as the
  best approximation of W - Q, from the checkpoint's own W; Q is what the base is and stays, so that Algorithm 1 is at
  its fixed point after one step (HF peft's `replace_lora_weights_loftq`; its `loftq_iter` above 1 rewrites the base,
  which then must be kept beside the adapter, and leaves s out: equal to ours where s is 1). The files hold B and A for
  the quantised base, as HF peft's do, and the initial pair: a merge into the unquantised W subtracts it, since that
  error is not in W.
- LoRA-FA (Zhang et al. 2023): `freeze_a` trains B alone, so that a training step keeps r numbers of a projection's
  input in place of all. HF peft has it as an optimizer, which also preconditions B's gradient; here it is the paper's
  definition, and any optimizer.
- LoRA+ (Hayou et al. 2024): `loraplus_lr_ratio` multiplies the learning rate of B and of one-dimensional parameters.
  The head keeps its own rate, and embedding factors the common one (the official code gives those 1e-6).
- GPT-2's fused q, k, v: each role has a pair of its own on its slice, as in loralib's MergedLinear.
- Embeddings: A zero, B N(0, 1), no dropout, as in loralib and HF peft. With tied embeddings only the look-up changes.
- `bias: lora_only` on a fused projection trains the bias of the role's features only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from peftcli.models.config_facts import width
from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.protocol.target_patterns import (
    Alpha,
    AlphaPattern,
    Rank,
    RankOrNonePattern,
    lora_scale,
    pick,
    refuse_idle_patterns,
)
from peftcli.recipe.method_params import ExpertParams, MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.layers.parts.lora_init import Decomposition
    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

INITS = ("gaussian", "orthogonal", "eva", "loftq", "olora", "pissa")
"""Words for `init_lora_weights`, besides `pissa_niter_N`."""


class LoraParams(ExpertParams):
    """Hyper-parameters of LoRA."""

    name: Literal["lora"] = "lora"
    r: Rank = 8
    """Rank of the change."""
    lora_alpha: Alpha = 16
    """The change is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the low-rank branch's input."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases trained beside the change: none, all of the base's, or those of the targets."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), which keeps high ranks learning."""
    use_dora: bool = False
    """Train a magnitude per output feature beside the direction (DoRA)."""
    init_lora_weights: bool | str = True
    """true, false (no identity at first), gaussian, orthogonal, eva, loftq, olora, pissa, pissa_niter_N (N rounds)."""
    rank_pattern: RankOrNonePattern = Field(default_factory=dict)
    """Other ranks, by role or by regular expression on the end of a module path; the first match counts; 0 for none."""
    alpha_pattern: AlphaPattern = Field(default_factory=dict)
    """Other values of lora_alpha, likewise."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0.0)] | None = None
    """LoRA+: learning rate of B over that of A; the paper recommends 16."""
    rho: Annotated[float, Field(ge=1.0)] = 2.0
    """EVA: a projection's largest rank over r, as ranks move to where they explain most; 1 leaves them as they are."""
    freeze_a: bool = False
    """Train B alone and keep A as it started (LoRA-FA): a step holds less of the activations."""
    target_parameters: list[str] | None = None
    """3-D parameters of experts, by the end of their names, such as mlp.experts.down_proj; besides target_modules."""

    @field_validator("init_lora_weights")
    @classmethod
    def _known_init(cls, value: bool | str) -> bool | str:
        if isinstance(value, bool) or value in INITS or pissa_iterations(value):
            return value
        raise ValueError(f"{value!r} is none of: true, false, {', '.join(INITS)}, pissa_niter_N")

    @field_validator("target_parameters")
    @classmethod
    def _names_a_parameter(cls, value: list[str] | None) -> list[str] | None:
        if value == []:
            raise ValueError("an empty list names nothing; leave the key out")
        return value

    @model_validator(mode="after")
    def _agreeing(self) -> LoraParams:
        if self.target_modules == [] and not self.target_parameters:
            raise ValueError("target_modules names nothing; name modules there, or experts in target_parameters")
        if self.use_dora and (self.starts_from_base or self.starts_from_error):
            raise ValueError(
                "use_dora and a pissa, olora or loftq initialisation exclude each other: both redefine what is frozen"
            )
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            raise ValueError(f"orthogonal initialisation needs even ranks, not {odd[0]}")
        return self

    @property
    def starts_from_base(self) -> bool:
        """Whether the factors start from the base's own weight (PiSSA, OLoRA), and are subtracted beside it."""
        init = str(self.init_lora_weights)
        return init == "olora" or init.startswith("pissa")

    @property
    def starts_from_error(self) -> bool:
        """Whether the factors start from what the base lost when it was quantised (LoftQ)."""
        return self.init_lora_weights == "loftq"

    def needs_quantised_base(self) -> tuple[str, str] | None:
        """Return that LoftQ starts from the quantisation's error."""
        reason = "init_lora_weights: loftq starts from what quantisation takes from the base, and this base is whole"
        return ("init_lora_weights", reason) if self.starts_from_error else None

    def rank_of(self, role: str | None, module: str) -> int:
        """Return the rank of a target: its role, and its path (a slice's key)."""
        return pick(self.rank_pattern, role, module, self.r)

    def alpha_of(self, role: str | None, module: str) -> float:
        """Return alpha of a target, likewise."""
        return pick(self.alpha_pattern, role, module, self.lora_alpha)

    def scale_of(self, role: str | None, module: str, rank: int) -> float:
        """Return s of a target."""
        return lora_scale(self.alpha_of(role, module), rank, rank_stabilised=self.use_rslora)

    @property
    def moves_ranks(self) -> bool:
        """Whether ranks are decided when training starts (EVA)."""
        return self.init_lora_weights == "eva" and self.rho > 1.0

    def open_sizes(self) -> str | None:
        """Return that EVA decides ranks, where it does."""
        if not self.moves_ranks:
            return None
        return f"ranks move when training starts (init_lora_weights: eva, rho {self.rho:g}); their sum stays"

    def after(self, earlier: MethodParams) -> MethodParams:
        """Return these hyper-parameters with the ranks that EVA gave an earlier training with the same r and alpha."""
        same = isinstance(earlier, LoraParams) and (earlier.r, earlier.lora_alpha) == (self.r, self.lora_alpha)
        if not (self.moves_ranks and same):
            return self
        return self.model_copy(update={key: getattr(earlier, key) for key in ("rank_pattern", "alpha_pattern")})

    def idle_keys(self) -> dict[str, str]:
        """Return that `rho` has no effect without EVA."""
        if self.init_lora_weights == "eva":
            return {}
        return {"rho": "it moves ranks with init_lora_weights: eva"}

    @property
    def start(self) -> str:
        """What sets how the factors start apart from others: pissa, olora, random_start, or nothing."""
        if self.starts_from_base:
            return "olora" if self.init_lora_weights == "olora" else "pissa"
        return "random_start" if self.init_lora_weights is False else ""


def pissa_iterations(init: str) -> int | None:
    """Return N of `pissa_niter_N`, else None."""
    found = re.fullmatch(r"pissa_niter_([1-9]\d*)", init)
    return int(found.group(1)) if found else None


def decomposition_of(params: LoraParams) -> Decomposition | None:
    """Return how the initial pair is taken from a weight; None where it is not."""
    from peftcli.layers.parts.lora_init import PrincipalPair, orthonormal_pair

    if not (params.starts_from_base or params.starts_from_error):
        return None
    init = str(params.init_lora_weights)
    return orthonormal_pair if init == "olora" else PrincipalPair(pissa_iterations(init))


class LoraMethod(Method[LoraParams]):
    """LoRA, DoRA, rsLoRA, LoRA+, PiSSA, OLoRA, LoftQ and LoRA-FA."""

    info = MethodInfo(
        name="lora",
        family="reparameterised",
        summary="Adds a trained low-rank product to chosen projections; DoRA, rsLoRA, PiSSA and others by option.",
        paper="Hu et al. 2021, arXiv:2106.09685",
        params=LoraParams,
        hf_type="LORA",
        plain_lora=True,
        # measured on the demo: the RoBERTa scripts' 4e-4 is slow within one epoch; decoders take 2e-4
        learning_rate=2e-3,
        trains="factors",
    )

    def check(self, anatomy: Anatomy, params: LoraParams) -> list[str]:
        """Return why these hyper-parameters do not fit: a rank above the smaller side of a matrix.

        Narrow matrices that a group such as `all-linear` brings along are left out when the method is attached.
        """
        from peftcli.attachments.lora import rank_above_matrix
        from peftcli.models.anatomy import BLOCK_ROLES
        from peftcli.protocol.narrow_layers import is_group

        entries = [params.target_modules] if isinstance(params.target_modules, str) else params.target_modules
        reasons: dict[str, None] = {}
        fits = False
        for linear in anatomy.linears:
            block = linear.role.split(".")[0]
            named = linear.role in entries or (block in BLOCK_ROLES and block in entries) or "all-linear" in entries
            if named or any(linear.module == entry or linear.module.endswith(f".{entry}") for entry in entries):
                rank = params.rank_of(linear.role, linear.key)
                reason = rank_above_matrix(rank, linear.out_features, linear.in_features, linear.role)
                fits = fits or reason is None
                if reason:
                    reasons[reason] = None
        return [] if fits and is_group(params.target_modules) else list(reasons)

    def check_config(self, config: Mapping[str, Any], params: LoraParams) -> list[str]:
        """Return the ranks that no projection of this model can carry: each has the residual width on one side."""
        limit = width(config)
        if limit is None:
            return []
        named = {"r": params.r, **{f"rank_pattern {key!r}": rank for key, rank in params.rank_pattern.items()}}
        return [
            f"{name} = {rank} is above the model's width; the largest useful rank is {limit}"
            for name, rank in named.items()
            if rank > limit
        ]

    def why_not_identity(self, params: LoraParams) -> str | None:
        """Return that both factors start at random, or mend the quantised base, where the recipe says so."""
        if params.starts_from_error:
            return "the factors start as what quantisation took from the base (init_lora_weights: loftq)"
        return "both factors start at random (init_lora_weights: false)" if params.init_lora_weights is False else None

    def rate_settings(self, params: LoraParams) -> dict[str, float]:
        """Return how the factors start, whether A is frozen, scale x rank over the defaults', and LoRA+'s ratio."""
        scale = params.scale_of(None, "", params.r) * params.r / 16
        values = {"scale": scale, "loraplus": params.loraplus_lr_ratio or 1.0}
        changed = {name: value for name, value in values.items() if value != 1.0}
        by_name = {params.start: bool(params.start), "freeze_a": params.freeze_a}
        return {name: 1.0 for name, holds in by_name.items() if holds} | changed

    def attach(self, model: nn.Module, anatomy: Anatomy, params: LoraParams) -> Attachment:
        """Add a low-rank change at every target.

        Raises:
            UserError: a target or a pattern matches nothing, a rank is above its matrix, or a variant does not fit a
                target.
        """
        from peftcli.attachments.expert_lora import attach_expert_lora
        from peftcli.attachments.lora import LoraPlace, LoraVariant, attach_lora
        from peftcli.models.experts.named_experts import ExpertChoice
        from peftcli.models.targets.target_modules import resolve_targets
        from peftcli.protocol.narrow_layers import without_narrow
        from peftcli.protocol.trained_biases import train_biases

        targets = resolve_targets(
            model,
            anatomy,
            params.target_modules,
            exclude=params.exclude_modules,
            layers=params.layers_to_transform,
            experts=ExpertChoice(params.target_parameters or (), params.experts),
        )
        refuse_idle_patterns(targets, {"rank_pattern": params.rank_pattern, "alpha_pattern": params.alpha_pattern})
        targets, notes = without_narrow(
            model, targets, lambda target: params.rank_of(target.role, target.key), params.target_modules
        )
        places = [
            LoraPlace(target, params.rank_of(target.role, target.key), params.alpha_of(target.role, target.key))
            for target in targets
        ]
        variant = LoraVariant(
            dropout=params.lora_dropout,
            init=params.init_lora_weights,
            decomposition=decomposition_of(params),
            from_error=params.starts_from_error,
            dora=params.use_dora,
            biases=params.bias == "lora_only",
            b_ratio=params.loraplus_lr_ratio,
            freeze_a=params.freeze_a,
            rho=params.rho if params.moves_ranks else 1.0,
            rank_stabilised=params.use_rslora,
        )
        attachment = attach_lora(model, [place for place in places if place.target.kind != "experts"], variant)
        attach_expert_lora(
            attachment, [place for place in places if place.target.kind == "experts"], variant, params.experts
        )
        attachment.notes += notes
        if params.bias == "all":
            train_biases(attachment, anatomy.biases)
        return attachment

    def merge_rules(self, anatomy: Anatomy, params: LoraParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that add s B A to weights (DoRA: and rescale rows), and put trained biases in place."""
        from peftcli.attachments.expert_lora import experts_change
        from peftcli.attachments.lora import embedding_change, linear_change
        from peftcli.models.experts.named_experts import by_key

        folding = Folding(anatomy)
        stacked = by_key(anatomy.experts)
        roles: dict[str, str | None] = {linear.key: linear.role for linear in anatomy.linears}
        roles |= {role.key: role.role for role in anatomy.experts}
        suffixes = ("lora_A.weight", "lora_B.weight", "initial_A", "initial_B", "lora_magnitude_vector")
        for key, tensors in tensors_by_key(state, (*suffixes, "lora_embedding_A", "lora_embedding_B")).items():
            if key in stacked:
                role = stacked[key]
                rank = len(tensors["lora_A.weight"]) // len(params.experts or range(role.experts))
                scale = params.scale_of(role.role, key, rank)
                folding.change_experts(role, experts_change(tensors, role, scale, params.experts))
                continue
            embedded = "lora_embedding_A" in tensors
            rank = len(tensors["lora_embedding_A" if embedded else "lora_A.weight"])
            scale = params.scale_of(roles.get(key), key, rank)
            change = embedding_change(tensors, scale) if embedded else linear_change(tensors, scale)
            folding.change_weight(key, change)
        for key, tensors in tensors_by_key(state, ("bias_delta",)).items():
            folding.change_bias(key, tensors["bias_delta"].float().add)
        for name, value in state.items():
            if name in anatomy.biases:
                folding.replace(name, value)
        return folding.rules()


METHOD = LoraMethod()
