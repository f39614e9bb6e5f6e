"""HiRA: Hadamard high-rank adaptation (Huang et al. 2025, ICLR, openreview.net/forum?id=TwJrTz9cRS; HF peft's code).

y = W x + b + (W * B A) dropout(x), where * multiplies element by element: as many parameters as LoRA, and a change
whose rank may reach that of W. There is no scale. B starts at zero, A as in LoRA. The frozen weight is read at every
pass (unpacked, where it is held in 4 bits). On an embedding it is the table's rows that are multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.protocol.target_patterns import Rank, RankPattern, pick, refuse_idle_patterns
from peftcli.recipe.method_params import TargetedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.layers.site import Part
    from peftcli.models.anatomy import Anatomy
    from peftcli.models.targets.target import Target
    from peftcli.protocol.attachment import Attachment


class HiraParams(TargetedParams):
    """Hyper-parameters of HiRA."""

    name: Literal["hira"] = "hira"
    r: Rank = 32
    """Rank of the product that multiplies the weight."""
    hira_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of the change."""
    init_weights: bool | Literal["gaussian"] = True
    """true, gaussian, or false (no identity at the start)."""
    rank_pattern: RankPattern = Field(default_factory=dict)
    """Other ranks, by role or by regular expression on the end of a module path; the first match counts."""

    def rank_of(self, role: str | None, module: str) -> int:
        """Return the rank of a target: its role, and its path (a slice's key)."""
        return pick(self.rank_pattern, role, module, self.r)


class HiraMethod(Method[HiraParams]):
    """HiRA."""

    info = MethodInfo(
        name="hira",
        family="reparameterised",
        summary="Multiplies chosen weights, element by element, by a trained low-rank product: a change of high rank.",
        paper="Huang et al. 2025, openreview.net/forum?id=TwJrTz9cRS",
        params=HiraParams,
        hf_type="HIRA",
        learning_rate=2e-2,  # measured on the demo: a change is a share of the weight, which is small itself
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: HiraParams) -> Attachment:
        """Add a part at each target.

        Raises:
            UserError: a target or a pattern matches nothing.
        """
        from peftcli.layers.site import output_site
        from peftcli.models.targets.target_modules import resolve_targets
        from peftcli.protocol.attachment import Attachment

        targets = resolve_targets(
            model, anatomy, params.target_modules, exclude=params.exclude_modules, layers=params.layers_to_transform
        )
        refuse_idle_patterns(targets, {"rank_pattern": params.rank_pattern})
        attachment = Attachment(model, targets=targets)
        for target in targets:
            host = model.get_submodule(target.module)
            attachment.place(target.key, _part(host, target, params), output_site(host).parts)
        return attachment

    def why_not_identity(self, params: HiraParams) -> str | None:
        """Return that both factors start at random, where the recipe says so."""
        return "both factors start at random (init_weights: false)" if params.init_weights is False else None

    def merge_rules(self, anatomy: Anatomy, params: HiraParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that multiply each weight by 1 + B A."""
        folding = Folding(anatomy)
        for key, tensors in tensors_by_key(state, ("hira_A", "hira_B")).items():

            def change(weight: Tensor, own: dict[str, Tensor] = tensors) -> Tensor:
                return weight.addcmul_(weight, own["hira_B"].to(weight) @ own["hira_A"].to(weight))

            folding.change_weight(key, change)
        for key, tensors in tensors_by_key(state, ("hira_embedding_A", "hira_embedding_B")).items():

            def change_table(table: Tensor, own: dict[str, Tensor] = tensors) -> Tensor:
                factor = own["hira_embedding_A"].to(table).T @ own["hira_embedding_B"].to(table).T
                return table.addcmul_(table, factor)

            folding.change_weight(key, change_table)
        return folding.rules()


def _part(host: nn.Module, target: Target, params: HiraParams) -> Part:
    from peftcli.layers.base_linear import BaseLinear
    from peftcli.layers.base_table import BaseTable
    from peftcli.layers.parts.lora_init import embedding_init, embedding_random_init, gaussian_init, kaiming_init
    from peftcli.layers.weight_changes.hadamard import EmbeddingHadamardDelta, HadamardDelta

    rank = params.rank_of(target.role, target.key)
    both_random = params.init_weights is False
    if target.kind == "embedding":
        init = embedding_random_init if both_random else embedding_init
        return EmbeddingHadamardDelta(BaseTable(host), rank, init=init)
    init = gaussian_init if params.init_weights == "gaussian" else kaiming_init
    init = embedding_random_init if both_random else init
    return HadamardDelta(BaseLinear(host, target.slice), rank, dropout=params.hira_dropout, init=init)


METHOD = HiraMethod()
