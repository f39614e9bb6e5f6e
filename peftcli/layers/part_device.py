"""Where a method's parts are made: on the device of the weight beside them, or where that weight will be.

A base whose values are still in its files is on the meta device while the method is attached. Its parts need memory and
values at once, for they are drawn as they are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_LATER: ContextVar[torch.device | None] = ContextVar("device of a base that is filled later", default=None)


@contextmanager
def base_comes_to(device: torch.device) -> Iterator[None]:
    """Make parts on this device while their base is on the meta device; by default they are on it, too."""
    token = _LATER.set(device)
    try:
        yield
    finally:
        _LATER.reset(token)


def device_beside(weight: Tensor) -> torch.device:
    """Return where what belongs to a weight is made."""
    later = _LATER.get()
    return weight.device if later is None or not weight.is_meta else later
