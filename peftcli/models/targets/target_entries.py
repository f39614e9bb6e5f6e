"""The entries of `target_modules`: names of modules, roles, and groups of both."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.models.anatomy import BLOCK_ROLES, EXPERT_ROLES, EXPERTS, LINEAR_ROLES

ALL_LINEAR = "all-linear"
ROLE_WORDS = (*LINEAR_ROLES, *BLOCK_ROLES, *EXPERT_ROLES, EXPERTS, "embeddings", "head", ALL_LINEAR)
"""Entries that are not names of modules."""


def is_group_entry(entry: str, targets: Sequence[str] | str) -> bool:
    """Tell whether an entry of `targets` stands for several kinds of layers."""
    return is_pattern(targets) or entry == ALL_LINEAR or entry in BLOCK_ROLES


def listed(targets: Sequence[str] | str) -> list[str]:
    """Return the entries, each once; a string is one entry."""
    return [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))


def is_pattern(targets: Sequence[str] | str | None) -> bool:
    """Tell whether the entries are one regular expression: a string that is no role or group."""
    return isinstance(targets, str) and targets not in ROLE_WORDS
