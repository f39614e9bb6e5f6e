"""The label of a position that is not learnt, wherever labels are made, padded or read."""

from __future__ import annotations

IGNORED = -100
"""PyTorch's `cross_entropy` and transformers' losses pass over this label unless told otherwise."""
