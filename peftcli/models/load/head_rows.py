"""The rows of a classification head follow the names of their labels, whoever trained it and in whichever order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftcli.shown_text import some_of

if TYPE_CHECKING:
    from torch import Tensor

_PLACEHOLDER = re.compile(r"LABEL_(\d+)")
_NUMBER = re.compile(r"\d+")
_GAPS = re.compile(r"[\s_\-]+")
_SHOWN = 6


@dataclass(frozen=True)
class HeadRows:
    """Which row of an earlier head belongs to which label.

    Args:
        wanted: names of the labels, in the order of the new rows.
        held: names of the earlier head's rows, in their order.
        rows: for each new row the number of the earlier one, or None where no name matches.
        nameless: whether the earlier head has no names, and its rows are taken in their order for want of better.
    """

    wanted: tuple[str, ...]
    held: tuple[str, ...]
    rows: tuple[int | None, ...]
    nameless: bool = False

    @property
    def found(self) -> bool:
        """Whether any row has an earlier one."""
        return any(row is not None for row in self.rows)

    @property
    def unchanged(self) -> bool:
        """Whether each row stays where it is."""
        return self.rows == tuple(range(len(self.held)))

    def place(self, fresh: Tensor, earlier: Tensor) -> Tensor:
        """Return a head's parameter for the new labels: rows of `earlier` by name, rows of `fresh` for the others.

        Args:
            fresh: (new labels, ...), of the same type and on the same device as the result.
            earlier: (earlier labels, ...).
        """
        placed = fresh.detach().clone()
        for new, old in enumerate(self.rows):
            if old is not None:
                placed[new] = earlier[old].detach().to(placed)
        return placed

    def note(self, whose: str) -> str | None:
        """Return what happens to the earlier head's rows, for the user; None where each stays in its place.

        Args:
            whose: who has the earlier head, such as `the checkpoint`.
        """
        if self.nameless:
            return (
                f"the task head of {whose} has no names for its labels ({_some(self.held)}): its rows are taken in the "
                f"order of the data's labels, {_some(self.wanted)}; if that is not their order, name them (id2label in "
                "a model's config.json, labels.json beside an adapter)"
            )
        if self.unchanged:
            return None
        theirs = f"{whose} has the labels {_some(self.held)}"
        if not self.found:
            ours = f"the data {_some(self.wanted)}"
            return f"the task head's last layer starts from new random values, since no label matches: {theirs}, {ours}"
        new = [name for name, row in zip(self.wanted, self.rows, strict=True) if row is None]
        unused = [name for number, name in enumerate(self.held) if number not in self.rows]
        parts = [f"the rows of the task head follow the names of the labels: {theirs}, the data {_some(self.wanted)}"]
        if new:
            parts.append(f"{_some(new)} {'is' if len(new) == 1 else 'are'} new: random values")
        if unused:
            parts.append(f"{_some(unused)} {'is' if len(unused) == 1 else 'are'} not used")
        return "; ".join(parts)


def unnamed_labels(size: int) -> tuple[str, ...]:
    """Return transformers' placeholders for labels without names."""
    return tuple(f"LABEL_{number}" for number in range(size))


def has_names(labels: Sequence[str]) -> bool:
    """Tell whether labels have names of their own, not transformers' placeholders alone."""
    return not all(_PLACEHOLDER.fullmatch(name) for name in labels)


def head_rows(wanted: Sequence[str], held: Sequence[str]) -> HeadRows:
    """Match the labels of the data with those of an earlier head.

    Names match exactly first. Those left match without regard to case, spaces, `_` and `-` where that is unambiguous.
    `LABEL_0`, `LABEL_1`, ... are no names: they match the numbers 0, 1, ... of as many labels; as many labels with
    names of their own take the rows in order, for want of better, and the note says so.
    """
    places = {name: number for number, name in enumerate(held) if held.count(name) == 1}
    if not has_names(held) and set(wanted) != set(held):
        if len(wanted) != len(held):
            return HeadRows(tuple(wanted), tuple(held), (None,) * len(wanted))
        numbers = [int(name) for name in wanted if _NUMBER.fullmatch(name)]
        if sorted(numbers) == list(range(len(held))):
            return HeadRows(tuple(wanted), tuple(held), tuple(places.get(f"LABEL_{number}") for number in numbers))
        return HeadRows(tuple(wanted), tuple(held), tuple(range(len(held))), nameless=True)
    found: dict[str, int] = {name: places[name] for name in wanted if name in places}
    ours = Counter(_plain(name) for name in wanted)
    theirs = Counter(_plain(name) for name in held)
    plain = {_plain(name): number for number, name in enumerate(held) if name not in found}
    for name in wanted:
        key = _plain(name)
        if name not in found and key in plain and ours[key] == theirs[key] == 1:
            found[name] = plain[key]
    return HeadRows(tuple(wanted), tuple(held), tuple(found.get(name) for name in wanted))


def _plain(name: str) -> str:
    return _GAPS.sub(" ", name).strip().casefold()


def _some(names: Sequence[str]) -> str:
    return some_of(names, _SHOWN)
