"""Counts the arithmetic of matrix products and of attention from the shapes of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from peftcli.training.watch.profile_table import PRODUCTS


class CountedProducts(TorchDispatchMode):
    """Within it, `flops` grows with each product: 2 m n k, and for attention two products forward and five backward.

    Causal attention counts half of its pairs. Elementwise operations count nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it."""
        called: Callable[..., Any] = func
        self.flops += arithmetic(func._schema.name, args)
        return called(*args, **(kwargs or {}))


def arithmetic(name: str, args: tuple[Any, ...]) -> float:
    """Return the floating-point operations of a call, from its name and its arguments."""
    first = PRODUCTS.get(name)
    if first is not None:
        return 2.0 * args[first].numel() * args[first + 1].shape[-1]
    if not name.startswith("aten::_scaled_dot_product"):
        return 0.0
    backward = name.endswith("_backward")
    query, key = args[1:3] if backward else args[:2]
    causal = args[7] if backward and len(args) > 7 else not backward and len(args) > 4 and args[4]
    pairs = query.numel() * key.shape[-2] * (0.5 if causal is True else 1.0)
    return 2.0 * pairs * (5 if backward else 2)
