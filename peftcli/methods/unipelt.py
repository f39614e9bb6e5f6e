"""UniPELT (Mao et al. 2021, arXiv:2110.07577; code morningmoni/UniPELT).

A Pfeiffer adapter after the feed-forward (reduction 16), a prefix of 10 on the attention (network of width 512) and
LoRA r = 8 on q and v, each under gates, as in the official code: sigmoid(w^T x + b) of what the part sees. The
adapter's gate sees the adapter's input, the prefix's sees the attention's input and scales keys and values alike,
LoRA's sees the projection's input, q and v apart, and takes the place of alpha / r.

Deviations: in an encoder a gate is averaged over a sequence's tokens without padding (the official code includes
it); in a decoder every token has its own gate, since a mean would include the answer and differ with a cache. A
decoder whose attention the prefix reaches by its cache (Bloom, GPT-Neo, Falcon) has one learnt constant for its
prefix's gate. A composition of `adapter`, `prefix_tuning` and `lora`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from peftcli.methods.adapter import AdapterParams
from peftcli.methods.lora import LoraParams
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.protocol.composite_method import CompositeMethod
from peftcli.protocol.composition import CompositeParams, PartSpec, why_no_part
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.method_params import Positive


class UniPeltAdapter(AdapterParams):
    """The adapter of UniPELT: Pfeiffer's by default."""

    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """houlsby: after attention and feed-forward; pfeiffer: after the feed-forward only."""


class UniPeltPrefix(PrefixTuningParams):
    """The prefix of UniPELT: ten tokens by default."""

    num_virtual_tokens: Positive = 10
    """Learned keys and values in front of every attention."""


class UniPeltParams(CompositeParams):
    """Hyper-parameters of UniPELT."""

    name: Literal["unipelt"] = "unipelt"
    adapter: UniPeltAdapter | None = Field(default_factory=UniPeltAdapter)
    """The adapter's hyper-parameters; null leaves it out."""
    prefix: UniPeltPrefix | None = Field(default_factory=UniPeltPrefix)
    """The prefix's hyper-parameters; null leaves it out."""
    lora: LoraParams | None = Field(default_factory=LoraParams)
    """LoRA's hyper-parameters (lora_alpha has no effect under a gate); null leaves it out."""
    gates: bool = True
    """Scale every part by a learnt gate on what it sees."""

    @model_validator(mode="after")
    def _parts_combine(self) -> UniPeltParams:
        if not self.specs:
            raise ValueError("adapter, prefix and lora are all null; keep at least one")
        reasons = [reason for spec in self.specs if (reason := why_no_part(spec.params))]
        if reasons:
            raise ValueError("; ".join(reasons))
        return self

    @property
    def specs(self) -> list[PartSpec]:
        """The parts that are not left out."""
        parts = {"adapter": self.adapter, "prefix": self.prefix, "lora": self.lora}
        return [PartSpec(label, params, self.gates) for label, params in parts.items() if params is not None]


METHOD = CompositeMethod(
    MethodInfo(
        name="unipelt",
        family="hybrid",
        summary="Adapter, prefix and LoRA together, each under learnt gates.",
        paper="Mao et al. 2021, arXiv:2110.07577",
        params=UniPeltParams,
        learning_rate=3e-3,  # measured on the demo
    )
)
