"""What a misspelt name probably means, and the question that asks it. Only the standard library: `recipe` uses it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import PurePath


def nearest(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that resemble `name`, the most similar first.

    Args:
        name: as it was written.
        known: what it may have been meant to be.
        most: how many are returned at most.
        cutoff: least similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    return difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)


def nearest_files(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.5) -> list[str]:
    """Return the file names that resemble `name` by what stands before the suffix, too; otherwise as `nearest`."""
    similar = nearest(name, known, most=most, cutoff=cutoff)
    return [one for one in similar if nearest(PurePath(name).stem, [PurePath(one).stem], cutoff=cutoff)]


def did_you_mean(meant: Iterable[object], then: str = "") -> str:
    """Return `did you mean a or b?` followed by `then`; `then` alone where nothing is meant."""
    names = " or ".join(str(name) for name in meant)
    return " ".join(part for part in (f"did you mean {names}?" if names else "", then) if part)
