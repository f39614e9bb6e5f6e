"""The records of the family table. A row contains paths of modules, and no code for a model.

A path may have alternatives, `a|b`. The first one that the model has is used, so that one row describes the variants of
a family (gated or not, with or without cross-attention). `*` in `StackRow.layers` stands for the numbers of the blocks.
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
    """A module that several roles share, and how its output features are divided.

    Args:
        roles: in the order of the output features.
        layout: `contiguous` (all features of the first role, then all of the second, ...; keys and values have fewer
            features in grouped-query attention), `per_head` (q, k, v of head 0, then of head 1, ...) or `per_group`
            (for each key-value head: its queries, then its key, then its value).
        sizes: features of each role in one head of a `per_head` layout; None if all are equal, one for each head that
            the config tells.
    """

    roles: tuple[str, ...]
    layout: Layout = "contiguous"
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BranchRow:
    """One residual branch. The fields are those of `anatomy.BlockRole`; paths are relative to the block."""

    kind: Literal["attn", "cross_attn", "ffn"]
    entry: str
    exit: str
    pre_norm: str | None = None
    post_norm: str | None = None


@dataclass(frozen=True)
class AttentionRow:
    """One attention module of a block. `kv_heads` is given if the width of the key projection does not tell it."""

    module: str
    kind: Literal["self", "cross"] = "self"
    kv_heads: int | None = None


@dataclass(frozen=True)
class StackRow:
    """The blocks of an encoder or a decoder.

    Args:
        layers: path of the blocks within the base model, with `*` for their numbers.
        linears: role to the path of its module within a block, or to several paths.
        fused: path within a block to the roles that the module has.
        branches: the residual branches.
        attentions: the attention modules.
        heads: the config's attribute with the number of query heads.
        left_out: path within a block to the reason why the module has no role.
        routers: paths within a block of those of them that choose experts.
        depths: function of the config, a block's number and the number of blocks; returns how often a forward pass
            runs the block.
        numbers: the numbers of the blocks that the row is about; None for all. Several rows may share one list.
    """

    stack: Stack
    layers: str
    linears: Mapping[str, str | tuple[str, ...]]
    branches: tuple[BranchRow, ...]
    attentions: tuple[AttentionRow, ...]
    fused: Mapping[str, FusedRow] = field(default_factory=dict)
    heads: str = "num_attention_heads"
    left_out: Mapping[str, str] = field(default_factory=dict)
    routers: tuple[str, ...] = ()
    depths: Callable[[PretrainedConfig, int, int], int] | None = None
    numbers: frozenset[int] | None = None


@dataclass(frozen=True)
class FamilyRow:
    """One family of models.

    Args:
        stacks: encoder, decoder or both.
        embeddings: path, within the base model, of the token embedding that a forward pass calls.
        positions: function of the config; returns the number of learned positions, or None without that limit.
        prefix_route, prefix_reason: as in `Anatomy`.
        target_positions: number of learned positions of a decoder beside an encoder, where it is another one.
        note: a remark for users of this family.
    """

    stacks: tuple[StackRow, ...]
    embeddings: str
    positions: Callable[[PretrainedConfig], int | None] | None = None
    prefix_route: str | None = "interface"
    prefix_reason: str | None = None
    target_positions: int | None = None
    note: str | None = None


Family = FamilyRow | Callable[["PretrainedConfig"], FamilyRow]
"""A row, or a function of the config that returns one, if the config moves a norm or changes a layout."""
