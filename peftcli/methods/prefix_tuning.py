"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190; code XiangLi1999/PrefixTuning).

As in the official code: every attention, self-attention in encoders and decoders and cross-attention, gets learned
keys and values in front of its own; a network Embedding -> Linear -> tanh -> Linear produces them while training,
one for each kind of attention (three in BART), and is dropped from the adapter; everything else is frozen. Without
the network (`prefix_projection: false`, HF peft's default) the parameters are the keys and values themselves.

In a decoder-only model they start from those that the base has for real text: the first tokens of the training rows,
or `prefix_init_text`. The model then goes on as if that text stood in front, where a random prefix starts 1.0 above the
base's loss (on a decoder of 135M). The paper's section 7.4 recommends real words where data is scarce, and fits the
network by 500 steps of Adam; here its last layer is solved for. HF peft has the same as a function,
`initialize_kv_prefix_from_text`, without a network. In models with an encoder the default is random (N(0, 1), or what a
fresh network gives): its tokens see what follows, so that no prefix is what text in front would be; on the demo an
encoder that started from text learnt nothing at the default rate.

Deviation: the network learns at a tenth of the rate (`projection_lr_ratio: 1` is the official code, with rates of
5e-5). A rate that suits a task head makes the network's keys so large that every query attends to the prefix alone.

Positions: in a decoder-only model the first token's position is num_virtual_tokens, as in the official GPT-2 code
and HF peft, whose prefix fills a cache; `shift_positions: false` leaves positions alone and takes none from a model
with few. ALiBi models (Bloom) have no positions to shift; their prefix gets a bias of zero.

Keys and values are stored as (depths, kv_heads, num_virtual_tokens, head_dim) in float32, without position encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from peftcli.models.config_facts import kind_of, positions
from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.method_params import MethodParams, Positive

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class PrefixTuningParams(MethodParams):
    """Hyper-parameters of prefix tuning."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: Positive = 20
    """Learned keys and values in front of every attention."""
    prefix_projection: bool = True
    """Produce them by a network while training; it is dropped from the saved adapter."""
    encoder_hidden_size: Positive = 512
    """Width of that network."""
    projection_lr_ratio: Annotated[float, Field(gt=0.0)] = 0.1
    """Learning rate of the network over that of all else: one step of its many weights moves keys and values far."""
    prefix_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the learned keys and values."""
    prefix_init: Literal["text", "random"] | None = None
    """What keys and values start from: those of real text, or random numbers; null: text in decoder-only models."""
    prefix_init_text: str | None = None
    """The text, repeated or cut to num_virtual_tokens; null takes the first tokens of the training rows."""
    shift_positions: bool | None = None
    """Count positions from num_virtual_tokens; null does so in decoder-only models, as HF peft."""

    def idle_keys(self) -> dict[str, str]:
        """Return the keys of the network, where there is none, and a text that is not used."""
        without = "prefix_projection is false, so there is no network"
        idle = {} if self.prefix_projection else {"encoder_hidden_size": without, "projection_lr_ratio": without}
        if self.prefix_init == "random":
            idle["prefix_init_text"] = "prefix_init is random"
        return idle


class PrefixTuningMethod(Method[PrefixTuningParams]):
    """Prefix tuning."""

    info = MethodInfo(
        name="prefix_tuning",
        family="additive",
        summary="Learned keys and values in front of every attention's own.",
        paper="Li & Liang 2021, arXiv:2101.00190",
        params=PrefixTuningParams,
        hf_type="PREFIX_TUNING",
        learning_rate=1e-2,  # measured on the demo; the network takes a tenth of it
        trains="vectors",
        unmergeable="learned keys and values are inputs of the attention, not a change of any weight; keep the adapter "
        "beside its base, or `peft export` it",
    )

    def check(self, anatomy: Anatomy, params: PrefixTuningParams) -> list[str]:
        """Return why this model cannot carry a prefix: no route to its attention, or no positions left."""
        if anatomy.prefix_route is None or not anatomy.attentions:
            reason = anatomy.prefix_reason or "no attention was found that keys and values could be put before"
            return [f"{reason}; use prompt_tuning, or lora on attn.k and attn.v"]
        without = anatomy.without_attention
        if without:
            blocks = sum(len(paths) for paths in anatomy.layers.values())
            return [
                f"{len(without)} of this model's {blocks} blocks have no attention that keys and values could be put "
                f"before ({', '.join(without[:3])}{', ...' if len(without) > 3 else ''}): they are linear attention, a "
                "state space model or the like; use lora or another method that changes projections"
            ]
        if not self.positions_taken(anatomy, params):
            return []
        return _too_many(params, anatomy.max_positions)

    def check_config(self, config: Mapping[str, Any], params: PrefixTuningParams) -> list[str]:
        """Return what a config.json says against these hyper-parameters: more virtual tokens than positions."""
        shifts = params.shift_positions is not False and kind_of(config) == "decoder"
        return _too_many(params, positions(config)) if shifts else []

    def positions_taken(self, anatomy: Anatomy, params: PrefixTuningParams) -> int:
        """Return how many of the model's positions the prefix takes."""
        return params.num_virtual_tokens if _shifts(anatomy, params) else 0

    def why_not_identity(self, params: PrefixTuningParams) -> str | None:
        """Return that every query sees the virtual tokens from the start."""
        return "every query sees the virtual tokens from the first step on"

    def attach(self, model: nn.Module, anatomy: Anatomy, params: PrefixTuningParams) -> Attachment:
        """Put a prefix before every attention, by the route that the family offers.

        Raises:
            UserError: the model does not take the attention implementation that the route needs.
        """
        from peftcli.attachments.prefix_tuning import PrefixStart, attach_prefixes

        from_text = _from_text(anatomy, params)

        return attach_prefixes(
            model,
            anatomy,
            length=params.num_virtual_tokens,
            mid=params.encoder_hidden_size if params.prefix_projection else None,
            dropout=params.prefix_dropout,
            ratio=params.projection_lr_ratio,
            shift=_shifts(anatomy, params),
            start=PrefixStart(params.prefix_init_text if from_text else None, from_rows=from_text),
        )


def _too_many(params: PrefixTuningParams, limit: int | None) -> list[str]:
    if limit is None or params.num_virtual_tokens < limit:
        return []
    return [
        f"num_virtual_tokens = {params.num_virtual_tokens} leaves no position of this model's {limit} for text; use at "
        f"most {limit - 1}, or shift_positions: false"
    ]


def _from_text(anatomy: Anatomy, params: PrefixTuningParams) -> bool:
    if params.prefix_init is not None:
        return params.prefix_init == "text"
    return params.prefix_init_text is not None or "encoder" not in anatomy.layers


def _shifts(anatomy: Anatomy, params: PrefixTuningParams) -> bool:
    decoder_only = "encoder" not in anatomy.layers
    return decoder_only if params.shift_positions is None else params.shift_positions and decoder_only


METHOD = PrefixTuningMethod()
