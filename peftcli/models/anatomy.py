"""Anatomy: where the parts of a transformer are in a live Hugging Face model. Pure data, read by `read_anatomy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LINEAR_ROLES = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.o",
    "cross_attn.q",
    "cross_attn.k",
    "cross_attn.v",
    "cross_attn.o",
    "ffn.up",
    "ffn.gate",
    "ffn.down",
)
BLOCK_ROLES = ("attn", "cross_attn", "ffn")
Stack = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class FusedSlice:
    """Which output features of a fused projection belong to one role.

    The output features are viewed as (groups, width); the role has [start, start + size) of every group. GPT-2's
    c_attn is one group of 3d; Bloom's query_key_value has a group for each head.
    """

    groups: int
    width: int
    start: int
    size: int

    @property
    def features(self) -> int:
        """Output features of the role."""
        return self.groups * self.size

    def take(self, y: Tensor) -> Tensor:
        """Return the role's features of y: (..., groups * width) as (..., features)."""
        return self.part(y).flatten(-2)

    def part(self, y: Tensor) -> Tensor:
        """Return the role's features of y as (..., groups, size), sharing storage."""
        piece: Tensor = self.split(y, self.width).narrow(-1, self.start, self.size)
        return piece

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        """Return y with `delta`: (..., features) added to the role's features; y itself is left as it is."""
        out = y.clone()
        self.part(out).add_(self.split(delta, self.size))
        return out

    def put(self, y: Tensor, value: Tensor) -> Tensor:
        """Return y with the role's features replaced by `value`: (..., features); y itself is left as it is."""
        out = y.clone()
        self.part(out).copy_(self.split(value, self.size))
        return out

    def split(self, y: Tensor, width: int) -> Tensor:
        """View (..., groups * width) as (..., groups, width), sharing storage."""
        return y.view(*y.shape[:-1], self.groups, width)


@dataclass(frozen=True)
class LinearRole:
    """One projection: a module, or a slice of a fused one.

    Args:
        role: one of `LINEAR_ROLES`.
        module: full path of the module in the live model.
        layer: block number from 0 within its stack.
        stack: encoder or decoder.
        in_features, out_features: of the role (a slice's own).
        has_bias: whether the module has a bias.
        slice: the role's features if the module is fused.
        transposed: whether the weight is stored (in, out), as transformers' Conv1D does.
    """

    role: str
    module: str
    layer: int
    stack: Stack
    in_features: int
    out_features: int
    has_bias: bool
    slice: FusedSlice | None = None
    transposed: bool = False

    @property
    def key(self) -> str:
        """Path that names this role in adapter files: the module's, with the role's last word behind a fused one."""
        return f"{self.module}.{self.role.split('.')[-1]}" if self.slice else self.module


@dataclass(frozen=True)
class BlockRole:
    """One residual branch: attention, cross-attention or feed-forward.

    Args:
        kind: attn, cross_attn or ffn.
        entry: path of the module whose first input is the branch's input (after a pre-norm).
        exit: path of the module whose output is the branch before dropout and the residual sum.
        post_norm: path of the norm that consumes the residual sum (post-norm models), else None.
        pre_norm: path of the norm whose output is the branch's input (pre-norm models), else None.
        width: hidden size at entry and exit.
    """

    kind: Literal["attn", "cross_attn", "ffn"]
    layer: int
    stack: Stack
    entry: str
    exit: str
    width: int
    post_norm: str | None = None
    pre_norm: str | None = None


@dataclass(frozen=True)
class AttentionRole:
    """One attention: where prefix keys and values go.

    Args:
        module: path of the attention module that is handed to the attention function.
        kv_heads, head_dim: shape of its keys and values.
        depths: how many times one forward pass runs it (shared layers), 1 otherwise.
    """

    module: str
    kind: Literal["self", "cross"]
    layer: int
    stack: Stack
    heads: int
    kv_heads: int
    head_dim: int
    depths: int = 1


@dataclass(frozen=True)
class Anatomy:
    """Every role of one model.

    Args:
        family: `config.model_type`.
        origin: `table` (a known family), `structure` (found by shape), or `recipe` (named by `model.anatomy`).
        layers: paths of the blocks, by stack, in order of depth.
        embeddings: path of the input token embedding that a prompt goes behind.
        output_embeddings: path of the language-model head, or None.
        head: paths of the task modules that the pretrained base lacks.
        norms: paths of the normalisation modules.
        left_out: (path, reason) of what is no role, such as 3-D expert weights.
        prefix_route: how prefix keys and values reach the attention; None if they cannot, with `prefix_reason`.
        max_positions: learned positions, or None without such a limit.
        takes_tokens: whether the model's main input is token ids, so that a prompt can go in front of them.
        biases: names of the base's bias parameters (linears, norms, pooler, ...), the head's left out.
    """

    family: str
    origin: Literal["table", "structure", "recipe"]
    hidden_size: int
    layers: dict[str, tuple[str, ...]]
    linears: tuple[LinearRole, ...]
    blocks: tuple[BlockRole, ...]
    attentions: tuple[AttentionRole, ...]
    norms: tuple[str, ...]
    embeddings: str
    output_embeddings: str | None
    head: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    prefix_route: str | None = "interface"
    prefix_reason: str | None = None
    max_positions: int | None = None
    takes_tokens: bool = True
    biases: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def roles(self) -> list[str]:
        """Return the linear roles that this model has, in the usual order."""
        present = {linear.role for linear in self.linears}
        return [role for role in LINEAR_ROLES if role in present]
