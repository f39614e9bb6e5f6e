"""(IA)3: learned vectors rescale keys, values and inner activations (Liu et al. 2022, arXiv:2205.05638).

y = l * (W x + b) on keys and values; W (l * x) on the feed-forward's last projection, which scales the inner
activations (T-Few scales the up projection's output after the gate's product: the same tensor; HF peft does it as
here). Experts that are 3-D parameters have a vector each, where they are named (`experts`, or by role). Vectors start
at one, so that a fresh adapter is the identity. T-Few trains with Adafactor at 3e-3; the default here is for AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from peftcli.protocol.folding import Change, Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import ExpertParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class IA3Params(ExpertParams):
    """Hyper-parameters of (IA)3."""

    name: Literal["ia3"] = "ia3"
    target_modules: list[str] | str | None = None  # type: ignore[assignment]  # null: what the paper's places are here
    """What is rescaled; null: keys and values of every attention, and the feed-forward's last projection."""
    feedforward_modules: list[str] | str = Field(default_factory=lambda: ["ffn.down"])
    """Which of them have their input rescaled instead of their output."""


class IA3Method(Method[IA3Params]):
    """(IA)3."""

    info = MethodInfo(
        name="ia3",
        family="reparameterised",
        summary="Rescales keys, values and inner feed-forward activations by learned vectors.",
        paper="Liu et al. 2022, arXiv:2205.05638",
        params=IA3Params,
        hf_type="IA3",
        learning_rate=2e-2,  # measured on the demo: T-Few's 3e-3 is slow within a few hundred steps
        trains="vectors",
    )

    def check(self, anatomy: Anatomy, params: IA3Params) -> list[str]:
        """Return why this model cannot be rescaled: none of the default places exist."""
        if params.target_modules is None and not _defaults(anatomy):
            return [f"this {anatomy.family} model has no attention keys, values or feed-forward; name target_modules"]
        return []

    def attach(self, model: nn.Module, anatomy: Anatomy, params: IA3Params) -> Attachment:
        """Add a `Rescale` at each target.

        Raises:
            UserError: a target matches nothing.
        """
        from peftcli.attachments.expert_vectors import attach_expert_rescale
        from peftcli.layers.parts.rescale import Rescale
        from peftcli.layers.site import input_site, output_site
        from peftcli.models.experts.named_experts import ExpertChoice
        from peftcli.models.targets.target_modules import resolve_targets
        from peftcli.protocol.attachment import Attachment
        from peftcli.protocol.projections import projection_targets, views

        entries = _defaults(anatomy) if params.target_modules is None else params.target_modules
        inner = set()
        named = _inner(anatomy, params.feedforward_modules)
        if named:
            inner = {target.key for target in resolve_targets(model, anatomy, named, experts=ExpertChoice())}
        targets = projection_targets(model, anatomy, params, entries, experts=ExpertChoice(numbers=params.experts))
        stacked = [target for target in targets if target.kind == "experts"]
        attachment = Attachment(model, targets=targets)
        for target, view in views(model, targets):
            if target.key in inner:
                part, site = Rescale(view.in_features, "input", None, view.device), input_site(view.module)
            else:
                part = Rescale(view.out_features, "output", target.slice, view.device)
                site = output_site(view.module)
            attachment.place(target.key, part, site.parts)
        attach_expert_rescale(attachment, stacked, inner, params.experts)
        return attachment

    def merge_rules(self, anatomy: Anatomy, params: IA3Params, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that scale rows and bias (output vectors) or columns (input vectors)."""
        from peftcli.attachments.expert_vectors import fold_expert_vectors
        from peftcli.models.experts.named_experts import by_key

        folding = Folding(anatomy)
        stacked = by_key(anatomy.experts)
        for key, tensors in tensors_by_key(state, ("ia3_l",)).items():
            vector = tensors["ia3_l"].float()
            if key in stacked:
                fold_expert_vectors(folding, stacked[key], vector, params.experts)
                continue
            if vector.shape[0] == 1:  # (1, in)
                folding.scale_input(key, vector.flatten())
                continue
            folding.change_weight(key, _times(vector))  # (out, 1)
            if folding.has_bias(key) or f"{key}.bias" in state:  # of a task head, which the base does not have
                folding.change_bias(key, _times(vector.flatten()))
        return folding.rules()


_PAPER = ("attn.k", "attn.v", "cross_attn.k", "cross_attn.v", "ffn.down")


def _times(vector: Tensor) -> Change:
    return lambda tensor: tensor.mul_(vector)


def _defaults(anatomy: Anatomy) -> list[str]:
    present = anatomy.roles()
    return [role for role in _PAPER if role in present]


def _inner(anatomy: Anatomy, entries: list[str] | str) -> list[str] | str | None:
    """Return the entries whose input is rescaled; the role ffn.down means that of the experts, too, where there is one.

    None where there is none: nothing is named, or the feed-forward's role alone on a model that has neither.
    """
    present = anatomy.roles()
    if not isinstance(entries, list) or "ffn.down" not in entries:
        return entries or None
    found = [role for role in ("ffn.down", "experts.down") if role in present]
    rest = [entry for entry in entries if entry != "ffn.down"]
    return [*rest, *found] if found else rest and entries


METHOD = IA3Method()
