"""The anatomy of a Hugging Face model: where the parts of its transformer are. Plain data, made by `read_anatomy`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LINEAR_ROLES = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.o",
    "attn.gate",
    "cross_attn.q",
    "cross_attn.k",
    "cross_attn.v",
    "cross_attn.o",
    "ffn.up",
    "ffn.gate",
    "ffn.down",
)
BLOCK_ROLES = ("attn", "cross_attn", "ffn")
EXPERT_ROLES = ("experts.up", "experts.gate", "experts.down")
EXPERTS = "experts"
"""Names all of `EXPERT_ROLES`."""
Stack = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class FusedSlice:
    """The output features of a fused projection that belong to one role.

    The output features are viewed as (groups, width), and the role has [start, start + size) of each group. GPT-2's
    c_attn has one group of width 3d; Bloom's query_key_value has a group for each head.
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
        """Return y with `delta`: (..., features) added to the role's features; y itself is not changed."""
        out = y.clone()
        self.part(out).add_(self.split(delta, self.size))
        return out

    def put(self, y: Tensor, value: Tensor) -> Tensor:
        """Return y with the role's features replaced by `value`: (..., features); y itself is not changed."""
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
        in_features, out_features: of the role; those of the slice if there is one.
        has_bias: whether the module has a bias.
        slice: the role's features, if the module is fused.
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
        """Path of this role in adapter files: the module's, followed by the role's last word if the module is fused."""
        return f"{self.module}.{self.role.split('.')[-1]}" if self.slice else self.module


@dataclass(frozen=True)
class ExpertRole:
    """One projection of the experts of a block: of all experts at once, or of one where each is a module of its own.

    Args:
        role: one of `EXPERT_ROLES`; None for a fused parameter as a whole.
        module: full path of the module that holds the parameter; of the linear itself where each expert has one.
        parameter: name of the 3-D parameter, (experts, out, in) or (experts, in, out); None for a linear.
        layer: block number from 0 within its stack.
        stack: encoder or decoder.
        experts: how many the parameter holds; in a linear, how many the block has.
        in_features, out_features: of the role, for one expert.
        slice: the role's output features, if gate and up are fused.
        transposed: whether the parameter is stored (experts, in, out).
        bias: full path of the parameter (experts, out) that holds the biases, or None.
        expert: number of the expert that a linear belongs to; None for a 3-D parameter.
    """

    role: str | None
    module: str
    parameter: str | None
    layer: int
    stack: Stack
    experts: int
    in_features: int
    out_features: int
    slice: FusedSlice | None = None
    transposed: bool = False
    bias: str | None = None
    expert: int | None = None

    @property
    def path(self) -> str:
        """Full path of the parameter, or of the linear."""
        return self.module if self.parameter is None else f"{self.module}.{self.parameter}"

    @property
    def key(self) -> str:
        """Path in adapter files: that of the parameter, followed by the role's last word if it is fused."""
        return f"{self.path}.{self.role.split('.')[-1]}" if self.slice and self.role else self.path

    def whole(self) -> ExpertRole:
        """Return the same for the whole parameter: a fused one has no role of its own."""
        if self.slice is None:
            return self
        return replace(self, role=None, slice=None, out_features=self.slice.groups * self.slice.width)


@dataclass(frozen=True)
class BlockRole:
    """One residual branch: attention, cross-attention or feed-forward.

    Args:
        kind: attn, cross_attn or ffn.
        entry: path of the module whose first input is the branch's input, after the norm in pre-norm models.
        exit: path of the module whose output is the branch's, before dropout and the residual sum.
        post_norm: path of the norm whose input is the residual sum, in post-norm models; else None.
        pre_norm: path of the norm whose output is the branch's input, in pre-norm models; else None.
        width: features at entry and exit; the hidden size, but where blocks narrow it (MobileBERT).
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
    """One attention module, which prefix keys and values are added to.

    Args:
        module: path of the module that transformers passes to the attention function.
        kv_heads, head_dim: shape of its keys and values.
        depths: how many times one forward pass runs it: more than once in models that share layers.
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
    """The parts of one model.

    Args:
        family: `config.model_type`.
        origin: `table` for a known family, `structure` if the parts were recognised, `recipe` if it names some.
        layers: paths of the blocks of each stack, in order of depth.
        embeddings: path of the token embedding; prompts replace rows of its output.
        output_embeddings: path of the language-model head, or None.
        head: paths of the task's modules that the pretrained base model does not have.
        norms: paths of the normalisation modules that training moves.
        left_out: (path, reason) of modules without a role, such as experts with 3-D weights.
        routers: paths of the modules that choose experts; `all-linear` leaves them out.
        experts: projections of experts, which take part in a method only where they are named.
        prefix_route: how prefix keys and values are added to the attention; None if they cannot be.
        prefix_reason: why they cannot be.
        max_positions: number of learned positions, or None without that limit.
        max_target_positions: those of the decoder in an encoder-decoder whose two sides have different ones, or None.
        takes_tokens: whether the model's main input is token ids, which a prompt can be put in front of.
        biases: names of the bias parameters that training moves (of linears, norms, poolers), without the head's.
        transposed: paths of the modules whose weight is stored (in, out), those without a role included.
        shared: names of the parameters that several modules have as one tensor: a head tied to the embeddings, the
            attention of Zamba's blocks. A change at one of these modules is that module's alone.
        without_attention: paths of the blocks that have no keys and values: linear attention, state space models.
        untouched: names of the parameters that training cannot move (of other towers, without a gradient), and why.
        idle: paths of the blocks that text alone does not reach (cross-attention to images): nothing is put there.
        other_states: paths of the blocks whose output is not one hidden state of each token: several streams, tokens
            in front of the text.
        notes: remarks for the user.
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
    routers: tuple[str, ...] = ()
    experts: tuple[ExpertRole, ...] = ()
    prefix_route: str | None = "interface"
    prefix_reason: str | None = None
    max_positions: int | None = None
    max_target_positions: int | None = None
    takes_tokens: bool = True
    biases: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    shared: frozenset[str] = frozenset()
    without_attention: tuple[str, ...] = ()
    untouched: dict[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    other_states: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def roles(self) -> list[str]:
        """Return the roles that this model has, in the order of `LINEAR_ROLES` and `EXPERT_ROLES`."""
        present = {linear.role for linear in self.linears} | {expert.role for expert in self.experts}
        return [role for role in (*LINEAR_ROLES, *EXPERT_ROLES) if role in present]
