"""The shape of one row of the family table. A row is data: paths below a block, no code per model.

A path may offer alternatives, `a|b`: the first one that the live model has is taken, so that one row serves the
variants of a family (gated or not, with or without cross-attention). `*` in `StackRow.layers` stands for block numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from peftcli.models.anatomy import Stack

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Layout = Literal["contiguous", "per_head", "per_group"]


@dataclass(frozen=True)
class FusedRow:
    """How one module holds several roles.

    Args:
        roles: in the order of the output features.
        layout: `contiguous` (all of the first role, then all of the second, ...; key and value blocks shrink under
            grouped-query attention), `per_head` (q, k, v of head 0, then of head 1, ...) or `per_group` (for each
            key-value head: its queries, then its key, then its value).
    """

    roles: tuple[str, ...]
    layout: Layout = "contiguous"


@dataclass(frozen=True)
class BranchRow:
    """One residual branch; the fields are those of `anatomy.BlockRole`, relative to the block."""

    kind: Literal["attn", "cross_attn", "ffn"]
    entry: str
    exit: str
    pre_norm: str | None = None
    post_norm: str | None = None


@dataclass(frozen=True)
class AttentionRow:
    """One attention module of a block. `kv_heads` overrides what the key projection's width says."""

    module: str
    kind: Literal["self", "cross"] = "self"
    kv_heads: int | None = None


@dataclass(frozen=True)
class StackRow:
    """The blocks of an encoder or a decoder.

    Args:
        layers: path of the blocks below the base model, with `*` for their numbers.
        linears: role: relative path of the module that is this role (of every one, if several are).
        fused: relative path: the roles that the module holds.
        branches: the residual branches.
        attentions: the attention modules.
        heads: the config's attribute with the number of query heads.
        left_out: relative path: why it is no role.
        depths: from the config and a block's number to how often one pass runs the block.
    """

    stack: Stack
    layers: str
    linears: Mapping[str, str | tuple[str, ...]]
    branches: tuple[BranchRow, ...]
    attentions: tuple[AttentionRow, ...]
    fused: Mapping[str, FusedRow] = field(default_factory=dict)
    heads: str = "num_attention_heads"
    left_out: Mapping[str, str] = field(default_factory=dict)
    depths: Callable[[PretrainedConfig, int, int], int] | None = None


@dataclass(frozen=True)
class FamilyRow:
    """One family of models.

    Args:
        stacks: encoder, decoder or both.
        embeddings: path, below the base model, of the token embedding that a forward pass calls.
        positions: from the config to the number of learned positions, or None without such a limit.
        prefix_route, prefix_reason: as in `Anatomy`.
        note: what a user of this family should know.
    """

    stacks: tuple[StackRow, ...]
    embeddings: str
    positions: Callable[[PretrainedConfig], int | None] | None = None
    prefix_route: str | None = "interface"
    prefix_reason: str | None = None
    note: str | None = None


Family = FamilyRow | Callable[["PretrainedConfig"], FamilyRow]
"""A row, or a small function of the config where the config moves a norm or changes a layout."""
