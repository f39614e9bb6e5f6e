"""LoReFT (Wu et al. 2024, arXiv:2404.03592; code stanfordnlp/pyreft).

Low-rank linear subspace intervention (section 3.2): h + R^T (W h + b - R h) at the output of chosen blocks and at the
first f and last l tokens of the prompt (the paper's p and s), with the rows of R (r x d) orthonormal. In an encoder and
where text is generated, the prompt is the whole input; in training it ends before the first supervised token. Behind
the prompt nothing changes, behind a cache nothing is computed. In an encoder-decoder, the encoder's blocks change.

A text without a prompt, all of whose tokens are supervised, is changed at its first tokens only: its end is not known
when it is generated. An intervention of the last tokens alone then learns nothing.

Deviations from pyreft: it starts from a random W, so that a fresh adapter changes the model; here W = R and b = 0. It
sets whole hidden states to zero by dropout; here dropout is on the r numbers W h + b - R h. A prompt that is shorter
than f + l has every token changed once: each kind gets what the other leaves, the first tokens the middle one. In the
paper (section 4.1) no kind gets more than half, the last tokens the middle one; pyreft leaves the middle one out.

The names are the paper's and pyreft's: rank r (`low_rank_dimension`), `layers`, `positions`, `share_weights`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.method_params import MethodParams, NotNegative, Positive

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

_POSITIONS = re.compile(r"(?:f(\d+))?\+?(?:l(\d+))?")


class LoreftParams(MethodParams):
    """Hyper-parameters of LoReFT."""

    name: Literal["loreft"] = "loreft"
    r: Positive = 8
    """Dimensions of the subspace (pyreft's low_rank_dimension)."""
    layers: list[NotNegative] | Literal["all"] = "all"
    """Numbers of the blocks whose outputs are changed, counted from 0, or all."""
    positions: str = "f7+l7"
    """Tokens of the prompt that are changed: f7+l7 is the first seven and the last seven; f7 or l7 alone."""
    share_weights: bool = True
    """One intervention for first and last tokens; false has two."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the change within the subspace."""

    @field_validator("layers")
    @classmethod
    def _names_a_block(cls, value: list[int] | str) -> list[int] | str:
        if value == []:
            raise ValueError("an empty list leaves no block; write all")
        return value

    @field_validator("positions")
    @classmethod
    def _names_tokens(cls, value: str) -> str:
        found = _POSITIONS.fullmatch(value)
        joined = found is not None and ("+" in value) == (None not in found.groups())
        if found is None or not joined or not any(int(count or 0) for count in found.groups()):
            raise ValueError(f"{value!r} names no tokens; write f7+l7, or f7 or l7 alone")
        return value

    def ends(self) -> tuple[int, int]:
        """Return how many first and how many last tokens of the prompt are changed."""
        found = _POSITIONS.fullmatch(self.positions)
        first, last = found.groups() if found else (None, None)
        return int(first or 0), int(last or 0)

    def idle_keys(self) -> dict[str, str]:
        """Return share_weights where there is one kind of token."""
        return {} if all(self.ends()) else {"share_weights": f"positions {self.positions} are of one kind"}


class LoreftMethod(Method[LoreftParams]):
    """LoReFT."""

    info = MethodInfo(
        name="loreft",
        family="additive",
        summary="Edits hidden states within a low-rank subspace, at the first and last tokens of the prompt.",
        paper="Wu et al. 2024, arXiv:2404.03592",
        params=LoreftParams,
        learning_rate=4e-3,  # measured on the demo: loss 0.137 there, 0.167 at 1.6e-2; 1e-3 is slow
        unmergeable="the change is made at some tokens only, and no weight tells tokens apart by their place; keep the "
        "adapter beside its base, or use lora if it must be folded in",
    )

    def check(self, anatomy: Anatomy, params: LoreftParams) -> list[str]:
        """Return why this model cannot carry these interventions."""
        if not anatomy.takes_tokens:
            return [f"a {anatomy.family} model has no prompt of tokens to intervene on; use lora or adapter"]
        blocks = _blocks(anatomy)
        reasons = []
        narrowest = min(blocks.values(), default=anatomy.hidden_size)
        if params.r > narrowest:
            reasons.append(f"r = {params.r} is above the hidden size {narrowest}; use at most {narrowest}")
        beyond = [layer for layer in params.layers if layer >= len(blocks)] if params.layers != "all" else []
        if beyond:
            reasons.append(f"layers: the model has blocks 0 to {len(blocks) - 1}, not {', '.join(map(str, beyond))}")
        chosen = _chosen(anatomy, params)
        if idle := [path for path in chosen if path in anatomy.idle]:
            reasons.append(f"layers: no gradient of a text reaches {', '.join(idle)}; leave it out")
        if any(path in anatomy.other_states for path in chosen):
            reasons.append(
                "the output of its blocks is not one hidden state of each token (several streams, or other tokens), so "
                "there is none to edit; use lora or adapter"
            )
        return reasons

    def attach(self, model: nn.Module, anatomy: Anatomy, params: LoreftParams) -> Attachment:
        """Put an intervention at the output of each chosen block."""
        from peftcli.attachments.loreft import attach_loreft

        first, last = params.ends()
        return attach_loreft(
            model,
            _chosen(anatomy, params),
            rank=params.r,
            first=first,
            last=last,
            tied=params.share_weights or not (first and last),
            dropout=params.dropout,
            labels_are_tokens="encoder" not in anatomy.layers and anatomy.output_embeddings is not None,
        )


def _blocks(anatomy: Anatomy) -> dict[str, int]:
    """Return the path of each block that can be changed, and the width of its output; shared blocks once."""
    stack = "encoder" if "encoder" in anatomy.layers else "decoder"
    return dict.fromkeys(anatomy.layers.get(stack, ()), anatomy.hidden_size)


def _chosen(anatomy: Anatomy, params: LoreftParams) -> dict[str, int]:
    """Return the blocks that `layers` names, those that the model has; `all` are those that text reaches."""
    blocks = _blocks(anatomy)
    return {
        path: width
        for layer, (path, width) in enumerate(blocks.items())
        if (path not in anatomy.idle if params.layers == "all" else layer in params.layers)
    }


METHOD = LoreftMethod()
