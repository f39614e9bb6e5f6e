"""Rows of which an answer without text is learnt: the model is taught to say nothing, which is seldom meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class EmptyAnswers:
    """How many such rows there are, and where the first one is.

    Args:
        rows: their number.
        source, row: file and line, or element, of the first one.
    """

    rows: int = 0
    source: str = ""
    row: int = 0

    def add(self, places: Sequence[tuple[str, int]]) -> None:
        """Take in the places of further rows, in the order of the files."""
        if places and not self.rows:
            self.source, self.row = places[0]
        self.rows += len(places)

    def note(self) -> list[str]:
        """Return what a user should know of them; nothing where there are none."""
        if not self.rows:
            return []
        what, first = "1 row teaches", "it is"
        if self.rows > 1:
            what, first = f"{self.rows:,} rows teach", "the first is"
        return [
            f"{what} an answer without text, so that the model learns to end its turn at once; {first} "
            f'{self.source}:{self.row} (remove such rows, or give these messages "train": false)'
        ]
