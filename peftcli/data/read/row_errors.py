"""Broken rows as they come: collected and raised together, or skipped and listed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from peftcli.data.read.records import BadRow
from peftcli.errors import Problem, UserError

SHOWN_ERRORS = 20  # broken rows shown before reading stops
LISTED_SKIPS = 10_000  # skipped rows that are listed by name; the rest is only counted
SKIP = "data.on_error: skip leaves broken rows out and lists them in the run directory"


NOT_UTF8 = "not UTF-8"
"""Begins the message of a row whose bytes are no text in UTF-8."""


class Errors:
    """Broken rows as they come: collected and raised together, or skipped and listed.

    Args:
        on_error: of the recipe.
        read_again: whether rows are read more than once, as those of a stream are; each counts once.
    """

    def __init__(self, on_error: Literal["fail", "skip"], *, read_again: bool = False) -> None:
        self._on_error = on_error
        self._counted: dict[tuple[str, bool], int] | None = {} if read_again else None
        self.skipped: list[BadRow] = []
        self.count = 0
        self._fatal: list[BadRow] = []

    def add(self, bad: Iterable[BadRow], *, always: bool = False, encoding: bool = False) -> None:
        """Take in broken rows; raises as soon as enough of them are there to show.

        Args:
            always: fail whatever the recipe says.
            encoding: whether encoding found them, which comes after reading: each of the two goes through a file in
                the order of its rows, so that what was counted is known by the last row of it.
        """
        if self._on_error == "skip" and not always:
            self._skip(list(bad), encoding)
        else:
            self._fatal += bad
        if len(self._fatal) >= SHOWN_ERRORS:
            self.raise_if_any()

    def _skip(self, bad: Sequence[BadRow], encoding: bool) -> None:
        """Count and list broken rows, of a file that is read again those behind what was counted."""
        if self._counted is not None:
            places = {(one.source, one.row): one for one in bad}
            bad = [one for one in places.values() if one.row > self._counted.get((one.source, encoding), 0)]
            for one in bad:
                place = one.source, encoding
                self._counted[place] = max(one.row, self._counted.get(place, 0))
        self.count += len(bad)
        self.skipped += bad[: LISTED_SKIPS - len(self.skipped)]

    def raise_if_any(self) -> None:
        """Raise a `UserError` with every row that was broken."""
        if self._fatal:
            problems = [*_other_encodings(self._fatal)]
            rest = [bad for bad in self._fatal if not bad.message.startswith(NOT_UTF8)]
            problems += [_problem(bad) for bad in rest[: SHOWN_ERRORS - len(problems)]]
            last = problems[-1]
            problems[-1] = replace(last, suggestion=f"{last.suggestion}\n    {SKIP}" if last.suggestion else SKIP)
            raise UserError(problems)


@contextmanager
def remedy_for_rows(remedy: str) -> Iterator[None]:
    """Say `remedy` about broken rows in place of `data.on_error`, for a file that no recipe names."""
    try:
        yield
    except UserError as error:
        changed = [replace(one, suggestion=(one.suggestion or "").replace(SKIP, remedy)) for one in error.problems]
        raise UserError(changed) from error


def _other_encodings(bad: Iterable[BadRow]) -> Iterator[Problem]:
    """Yield one problem for each file that is not UTF-8, with what to do: a file has one encoding, not each row."""
    first: dict[str, BadRow] = {}
    for one in bad:
        if one.message.startswith(NOT_UTF8):
            first.setdefault(one.source, one)
    for one in first.values():
        remedy = (
            "files of office programs are often in Windows-1252: save the file as UTF-8 (`CSV UTF-8`), "
            f"or convert it: iconv -f WINDOWS-1252 -t UTF-8 {one.source}"
        )
        yield replace(
            _problem(one), message=f"the file is {one.message}", suggestion=f"row: {one.excerpt}\n    {remedy}"
        )


def _problem(bad: BadRow) -> Problem:
    lines = [f"row: {bad.excerpt}"] if bad.excerpt else []
    if bad.expected:
        lines.append(f"expected: {bad.expected}")
    return Problem(bad.message, file=bad.source, line=bad.row, suggestion="\n    ".join(lines) or None)
