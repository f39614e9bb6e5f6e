"""BitFit: train the bias terms only (Ben Zaken et al. 2021, arXiv:2106.10199; code benzakenelad/BitFit).

As in the official code: `all` trains every bias of the base, those of the norms, of the embeddings' norm and of
BERT's pooler included, and the task head. Deviation: with chosen terms the official code always adds the pooler's
bias; here the terms are what is trained, besides the head. The paper's subset is [attn.q, ffn.up].

The biases are trained in place (beside the layer where it is quantised) and saved under their own names. On one role
of a fused projection (GPT-2's attn.q) the module's bias stays frozen and a difference for that slice is trained and
saved as `bias_delta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from peftcli.models.anatomy import BLOCK_ROLES, EXPERT_ROLES, EXPERTS, LINEAR_ROLES
from peftcli.protocol.folding import Change, Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy, LinearRole
    from peftcli.protocol.attachment import Attachment

_TERMS = (*LINEAR_ROLES, *BLOCK_ROLES, *EXPERT_ROLES, EXPERTS, "norms")


class BitFitParams(MethodParams):
    """Hyper-parameters of BitFit."""

    name: Literal["bitfit"] = "bitfit"
    terms: Literal["all"] | list[str] = Field(default="all")
    """Which biases: all, or roles such as [attn.q, ffn.up]; `attn`, `ffn`, `experts` and `norms` stand for several."""

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: str | list[str]) -> str | list[str]:
        if isinstance(terms, list):
            unknown = [term for term in terms if term not in _TERMS]
            if unknown or not terms:
                given = f"unknown terms {', '.join(unknown)}" if unknown else "no terms"
                raise ValueError(f"{given}; choose `all`, or a list of: {', '.join(_TERMS)}")
        return terms


class BitFitMethod(Method[BitFitParams]):
    """BitFit."""

    info = MethodInfo(
        name="bitfit",
        family="selective",
        summary="Trains the bias terms of the base model, all of them or those of chosen roles.",
        paper="Ben Zaken et al. 2021, arXiv:2106.10199",
        params=BitFitParams,
        learning_rate=4e-3,  # the official code's is 1e-3, for 16 epochs; measured on the demo: that is slow within one
        trains="vectors",
    )

    def check(self, anatomy: Anatomy, params: BitFitParams) -> list[str]:
        """Return why this model cannot be trained by its biases: it has none, or none where they are asked for."""
        if not anatomy.biases:
            reached = " that a gradient reaches" * any(name.endswith("bias") for name in anatomy.untouched)
            return [
                f"this {anatomy.family} model has no bias terms{reached}, so BitFit would train nothing; "
                "use lora or ia3, or freeze with `trainable: norms`"
            ]
        if params.terms == "all":
            return []
        missing = [term for term in params.terms if not _names(anatomy, term) and not _slices(anatomy, term)]
        present = [term for term in _TERMS if _names(anatomy, term) or _slices(anatomy, term)]
        return [
            f"{term} has its biases in one parameter with other roles: name {EXPERTS}, which trains all of them"
            if _shares_biases(anatomy, term)
            else f"{term} has no bias in this {anatomy.family} model; terms with one: {', '.join(present)}"
            for term in missing
        ]

    def attach(self, model: nn.Module, anatomy: Anatomy, params: BitFitParams) -> Attachment:
        """Let the chosen biases train; a slice of a fused projection gets a `BiasDelta`."""
        from peftcli.layers.part_device import device_beside
        from peftcli.layers.parts.bias import BiasDelta
        from peftcli.layers.site import output_site
        from peftcli.protocol.attachment import Attachment
        from peftcli.protocol.trained_biases import train_biases

        attachment = Attachment(model)
        if params.terms == "all":
            train_biases(attachment, anatomy.biases)
            return attachment
        train_biases(attachment, dict.fromkeys(name for term in params.terms for name in _names(anatomy, term)))
        slices = {linear.key: linear for term in params.terms for linear in _slices(anatomy, term)}
        for key, linear in slices.items():
            assert linear.slice is not None  # what _slices selects by
            device = device_beside(model.get_parameter(f"{linear.module}.bias"))
            part = BiasDelta(linear.out_features, linear.slice, device)
            attachment.place(key, part, output_site(model.get_submodule(linear.module)).parts)
        return attachment

    def merge_rules(self, anatomy: Anatomy, params: BitFitParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return the trained biases as they are, and a slice's difference added to its features."""
        folding = Folding(anatomy)
        biases = set(anatomy.biases)
        for name, value in state.items():
            if name in biases:
                folding.replace(name, value)
        for key, tensors in tensors_by_key(state, ("bias_delta",)).items():
            folding.change_bias(key, _plus(tensors["bias_delta"].float()))
        return folding.rules()


def _plus(delta: Tensor) -> Change:
    return lambda bias: bias.add_(delta)


def _linears(anatomy: Anatomy, term: str) -> list[LinearRole]:
    return [linear for linear in anatomy.linears if linear.role == term or linear.role.split(".")[0] == term]


def _names(anatomy: Anatomy, term: str) -> list[str]:
    """Return the bias parameters that `term` names whole."""
    if term in (EXPERTS, *EXPERT_ROLES):
        named = [role for role in anatomy.experts if term in (EXPERTS, role.role)]
        stacked = [role.bias for role in named if role.bias and (term == EXPERTS or role.slice is None)]
        own = [f"{role.module}.bias" for role in named if role.parameter is None]
        return list(dict.fromkeys([*stacked, *(name for name in own if name in anatomy.biases)]))
    if term == "norms":
        modules = list(anatomy.norms)
    else:
        modules = [linear.module for linear in _linears(anatomy, term) if linear.slice is None]
    return [f"{module}.bias" for module in modules if f"{module}.bias" in anatomy.biases]


def _shares_biases(anatomy: Anatomy, term: str) -> bool:
    return any(role.role == term and role.bias and role.slice for role in anatomy.experts)


def _slices(anatomy: Anatomy, term: str) -> list[LinearRole]:
    return [linear for linear in _linears(anatomy, term) if linear.slice is not None and linear.has_bias]


METHOD = BitFitMethod()
