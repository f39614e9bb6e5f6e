"""One view of every kind of frozen projection: Linear, transformers' Conv1D, a slice of a fused one, a quantised one.

Methods read base values through this view only (DoRA's norms, PiSSA's singular vectors), so that none of them asks for
a class. A view is matched by shape and attributes: importing transformers or bitsandbytes here would cost seconds.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from peftcli.distributed.whole_tensors import whole
from peftcli.layers.part_device import device_beside
from peftcli.layers.quantised.quantised_weights import dequantised, is_quantised, own_tensors


class Slice(Protocol):
    """Which output features of a fused projection are meant; `models.anatomy.FusedSlice` is one."""

    @property
    def groups(self) -> int:
        """The features are viewed as (groups, width)."""

    @property
    def width(self) -> int:
        """Features of one group."""

    @property
    def start(self) -> int:
        """First feature of the slice within every group."""

    @property
    def size(self) -> int:
        """Features of the slice within every group."""

    @property
    def features(self) -> int:
        """Output features of the slice."""

    def take(self, y: Tensor) -> Tensor:
        """Return the slice's features of y: (..., groups * width) as (..., features)."""

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        """Return y with delta: (..., features) added to the slice's features."""

    def put(self, y: Tensor, value: Tensor) -> Tensor:
        """Return y with the slice's features replaced by value: (..., features)."""


class BaseLinear:
    """A frozen projection y = x W^T + b, or the rows of it that belong to one role.

    Args:
        module: the live module; the view follows it to another device or dtype.
        rows: the role's output features, if the module is fused.

    Raises:
        TypeError: `module` is no projection that this view can read.
    """

    def __init__(self, module: nn.Module, rows: Slice | None = None) -> None:
        self.module = module
        self.rows = rows
        self.in_features, whole = linear_widths(module)
        self.out_features = whole if rows is None else rows.features

    @property
    def has_bias(self) -> bool:
        """Whether the module adds a bias."""
        return getattr(self.module, "bias", None) is not None

    @property
    def quantised(self) -> bool:
        """Whether the weight is held in fewer bits than a plain one."""
        return is_quantised(self.module)

    @property
    def device(self) -> torch.device:
        """Where the weight is, or comes to be."""
        return device_beside(next(own_tensors(self.module)))

    @torch.no_grad()
    def weight(self) -> Tensor:
        """Return the frozen weight, (out_features, in_features), float32, dequantised; a copy where that needs one.

        Outside of a pass, every process that has a share of it must call this.
        """
        return self.of_whole(_whole_weight(self.module))

    def weight_in_pass(self) -> Tensor:
        """Return what `weight` returns, for a forward pass: gradients reach the weight where it is trained, too."""
        stored = getattr(self.module, "weight", None)
        if not isinstance(stored, Tensor) or not stored.requires_grad:
            return self.weight()
        live = whole(stored).float()
        return self.of_whole(live.T if is_transposed(self.module) else live)

    def of_whole(self, weight: Tensor) -> Tensor:
        """Return the view's own rows, (out_features, in_features), of a matrix of the whole module's size."""
        return weight if self.rows is None else self.rows.take(weight.T).T

    def bias(self) -> Tensor | None:
        """Return the live bias, (out_features,), or None; gradients reach it when it is trained."""
        bias = getattr(self.module, "bias", None)
        if not isinstance(bias, Tensor):
            return None
        bias = whole(bias)
        return bias if self.rows is None else self.rows.take(bias)


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a projection stores its weight (in, out), as transformers' Conv1D does."""
    return hasattr(module, "nf") and not hasattr(module, "out_features")


def linear_widths(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a projection.

    Raises:
        TypeError: `module` is none.
    """
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]  # ints of a duck-typed module
    weight = getattr(module, "weight", None)
    if is_transposed(module) and isinstance(weight, Tensor) and weight.ndim == 2:
        return weight.shape[0], weight.shape[1]
    raise TypeError(f"{type(module).__name__} is no linear projection: neither in_features nor a Conv1D's weight")


def _whole_weight(module: nn.Module) -> Tensor:
    unpacked = dequantised(module)
    if unpacked is not None:
        return unpacked
    stored = whole(module.get_parameter("weight").detach()).float()
    return stored.T if is_transposed(module) else stored
