"""What an entry of HF peft's `target_parameters` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def experts_in(config: Mapping[str, Any]) -> list[str]:
    """Return the names in `target_parameters` that are not weights of linear modules, which see `taken_for_experts`."""
    return [name for name in config.get("target_parameters") or () if not f".{name}".endswith(".weight")]
