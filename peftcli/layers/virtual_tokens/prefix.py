"""Learned keys and values in front of an attention's own (prefix tuning), and the network that may produce them.

Li & Liang 2021 (2101.00190). The tensors are registered below the attention module. `prefix_interface` gives them to
attentions that use transformers' registered functions, `prefix_hooks` to those of other families. Neither stores them
in the cache, so positions do not shift by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.added_modules import ADDED
from peftcli.layers.dropout import dropout as drop
from peftcli.layers.site import Part, PartList, first_tensor

PREFIX_NAME = f"{ADDED}prefix"
"""Child name of a `PrefixSite` under its attention module."""


@dataclass(frozen=True)
class PrefixShape:
    """Shape of one attention's prefix.

    Args:
        depths: how often one forward pass runs the attention (shared layers); each depth has its own prefix.
        kv_heads, head_dim: of its keys and values.
        length: virtual tokens.
        entry: width of the attention's input, which a gate sees.
    """

    depths: int
    kv_heads: int
    head_dim: int
    length: int
    entry: int

    @property
    def width(self) -> int:
        """Numbers of one virtual token: a key and a value for every depth."""
        return 2 * self.depths * self.kv_heads * self.head_dim


class PrefixNetwork(nn.Module):
    """The part of the reparameterisation that the attentions of one kind share: tanh(Linear(Embedding)).

    Official code: Embedding(l, d) -> Linear(d, mid) -> tanh -> Linear(mid, 2Ld). The last layer is kept as one piece
    per attention, in its `Prefix`: the same numbers, without a slice of a large weight in every backward pass.

    Args:
        length: virtual tokens, l.
        width: d.
        mid: width behind the first layer.
    """

    def __init__(self, length: int, width: int, mid: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(length, width, dtype=torch.float32)
        self.down = nn.Linear(width, mid, dtype=torch.float32)

    def forward(self) -> Tensor:
        """Return the hidden states of all virtual tokens, (l, mid)."""
        return torch.tanh(self.down(self.wte.weight))


class Prefix(Part):
    """The keys and values that one method puts before one attention's own; float32.

    Args:
        shape: of the keys and values.
        dropout: on keys and values while training (the official code's prefix_dropout); one mask for all rows of a
            step.
        network: produces them; None holds them as parameters, N(0, 1) as the official code's flat variant and HF peft.
    """

    def __init__(self, shape: PrefixShape, dropout: float = 0.0, network: PrefixNetwork | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self._network: tuple[PrefixNetwork, ...] = ()  # a tuple: the network is registered once, not in every part
        self.key: nn.Parameter | None = None
        self.value: nn.Parameter | None = None
        self.up: nn.Linear | None = None
        if network is None:
            self._hold(torch.randn(self._size()), torch.randn(self._size()))
        else:
            self.produce(network, nn.Linear(network.down.out_features, shape.width, dtype=torch.float32))

    def _size(self) -> tuple[int, int, int, int]:
        shape = self.shape
        return shape.depths, shape.kv_heads, shape.length, shape.head_dim

    def _hold(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = nn.Parameter(key), nn.Parameter(value)

    @property
    def network(self) -> PrefixNetwork | None:
        """What produces the prefix; None if it is held flat."""
        return self._network[0] if self._network else None

    def produce(self, network: PrefixNetwork, up: nn.Linear) -> None:
        """Let `network` and `up` produce the prefix from here on; drops held keys and values."""
        self._network, self.up = (network,), up
        self.key = self.value = None

    def flatten(self) -> nn.Linear | None:
        """Hold what the network produces as parameters from here on; return its last layer, None if already flat."""
        up = self.up
        if up is not None:
            key, value = (tensor.detach().clone() for tensor in self.states())
            self._network, self.up = (), None
            self._hold(key, value)
        return up

    def states(self) -> tuple[Tensor, Tensor]:
        """Return all keys and values, each (depths, kv_heads, length, head_dim), without dropout."""
        if self.key is not None and self.value is not None:
            return self.key, self.value
        assert self.up is not None  # either held or produced, see __init__
        flat: Tensor = self.up(self._network[0]())  # (length, width)
        shape = self.shape
        both = flat.view(shape.length, 2, shape.depths, shape.kv_heads, shape.head_dim).permute(1, 2, 3, 0, 4)
        return both[0], both[1]

    @torch.no_grad()
    def start_from(self, key: Tensor, value: Tensor) -> None:
        """Set the keys and values, each (depths, kv_heads, length, head_dim); a network produces them from here on.

        The network's last layer is the least one that gives them: exactly while it is as wide as the prefix is long,
        else as nearly as it can.
        """
        if self.key is not None and self.value is not None:
            self.key.copy_(key)
            self.value.copy_(value)
            return
        assert self.up is not None  # either held or produced, see __init__
        hidden = self._network[0]()
        flat = torch.stack([key, value]).permute(3, 0, 1, 2, 4).reshape(self.shape.length, self.shape.width)
        # on the CPU in double precision: the same values on every device
        weight = torch.linalg.pinv(hidden.double().cpu()) @ flat.double().cpu()
        self.up.weight.copy_(weight.T)
        self.up.bias.zero_()

    def at(self, depth: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of one depth, each (kv_heads, length, head_dim), with dropout while training."""
        key, value = self.states()
        if self.dropout and self.training:
            key, value = (drop(t, self.dropout, shared=True) for t in (key, value))
        return key[depth], value[depth]

    def gate_width(self) -> int | None:
        """Return the width of the attention's input."""
        return self.shape.entry

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return keys, values and a gate's parameters: the network is for training only and is not saved."""
        key, value = self.states()
        gate = self.scale.named_parameters() if isinstance(self.scale, nn.Module) else ()
        return {"key": key, "value": value, **{f"scale.{name}": tensor for name, tensor in gate}}


@dataclass(frozen=True)
class PrefixStates:
    """What an attention sees in front of its own keys and values in one call.

    Args:
        key, value: (batch or 1, kv_heads, p, head_dim).
        factor: (batch, 1, seq, p), a gate of every query on every prefix position, which scales key and value alike;
            None where gates (if any) are already in key and value.
    """

    key: Tensor
    value: Tensor
    factor: Tensor | None = None

    @property
    def length(self) -> int:
        return self.key.shape[2]


class PrefixSite(nn.Module):
    """The ordered prefixes of one attention, as a child module of it.

    Attributes:
        depths: how often one forward pass runs the attention.
        implementation_before: the model's attention implementation before the first prefix came.
        seen: None, or a list that the route appends the attention's own keys and values to, each (batch, kv_heads or
            heads, keys, head_dim), as the attention sees them; only while no prefix is enabled.
    """

    def __init__(self, depths: int) -> None:
        super().__init__()
        self.parts = PartList()
        self.depths = depths
        self.implementation_before = "sdpa"
        self.seen: list[tuple[Tensor, Tensor]] | None = None
        self._calls = self._depth = 0
        self._entry: Tensor | None = None

    @property
    def active(self) -> bool:
        return any(part.enabled for part in self.parts)

    @property
    def length(self) -> int:
        """Virtual tokens of the enabled parts."""
        return sum(part.shape.length for part in self.prefixes() if part.enabled)

    def prefixes(self) -> list[Prefix]:
        """Return the parts, enabled or not, in order."""
        return [part for part in self.parts if isinstance(part, Prefix)]

    def begin(self, entry: Tensor) -> None:
        """Note that the attention runs now on `entry`: (batch, seq, d); gates read it."""
        if self.depths > 1:  # a count that moves with every call would have a compiled block compiled anew each time
            self._depth = self._calls % self.depths
            self._calls += 1
        gated = any(isinstance(part.scale, nn.Module) for part in self.parts)
        self._entry = entry if gated else None

    def restart(self) -> None:
        """Note that a new forward pass of the whole model starts: depths count from 0."""
        self._calls = 0

    def states(self, dtype: torch.dtype) -> PrefixStates | None:
        """Return the prefix of this call in `dtype`, or None if every part is off."""
        keys, values, factors = [], [], []
        for part in self.prefixes():
            if part.enabled:
                key, value, factor = _gated(part, self._depth, self._entry)
                keys.append(key.to(dtype))
                values.append(value.to(dtype))
                factors.append(factor)
        if not keys:
            return None
        batch = max(key.shape[0] for key in keys)
        joined = [torch.cat([t.expand(batch, -1, -1, -1) for t in tensors], dim=2) for tensors in (keys, values)]
        return PrefixStates(joined[0], joined[1], _joined_factor(keys, factors))


def _gated(part: Prefix, depth: int, entry: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return key, value (batch or 1, ...) and, for a gate per position, its factor (batch, 1, seq, 1)."""
    key, value = (tensor.unsqueeze(0) for tensor in part.at(depth))
    scale: Tensor | float = part.scale if entry is None else part.scale_of(entry)
    if isinstance(scale, Tensor) and scale.dim() == 3 and scale.shape[1] > 1:
        return key, value, scale.unsqueeze(1)
    if isinstance(scale, Tensor):
        scale = scale.reshape(-1, 1, 1, 1)
    return (key, value, None) if isinstance(scale, float) and scale == 1.0 else (key * scale, value * scale, None)


def _joined_factor(keys: list[Tensor], factors: list[Tensor | None]) -> Tensor | None:
    given = next((factor for factor in factors if factor is not None), None)
    if given is None:
        return None
    full = [torch.ones_like(given) if factor is None else factor for factor in factors]
    return torch.cat([f.expand(-1, -1, -1, key.shape[2]) for f, key in zip(full, keys, strict=True)], dim=-1)


def prefix_site(attention: nn.Module, depths: int = 1) -> PrefixSite:
    """Return the prefix site of an attention module, made on the first call."""
    existing = attention._modules.get(PREFIX_NAME)
    if isinstance(existing, PrefixSite):
        return existing
    site = PrefixSite(depths)
    attention.add_module(PREFIX_NAME, site)

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if site.active:
            site.begin(first_tensor(args, kwargs))

    attention.register_forward_pre_hook(begin, with_kwargs=True)
    return site


def find_prefix_site(attention: nn.Module) -> PrefixSite | None:
    """Return the prefix site of an attention module if it has one."""
    site = attention._modules.get(PREFIX_NAME)
    return site if isinstance(site, PrefixSite) else None
