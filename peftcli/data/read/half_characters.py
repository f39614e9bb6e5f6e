"""Half a character in JSON: an escape of \\ud800 to \\udfff that stands alone. It is valid JSON, and no text."""

from __future__ import annotations

import json
import re

HALF = "half a character: a \\ud800 to \\udfff that stands alone"
BOTH_HALVES = "both halves, or none"

_MARK = "\ufdd0"  # Unicode promises that it is no character
_ESCAPED_MARK = rb"\ufdd0"  # as long as what it replaces, so that columns in messages stay right
_ALONE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB].{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_UNFINISHED = re.compile(rb"\\*(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")
_LONGEST_END = 16  # bytes at the end of a piece in which an unfinished escape begins


def holds_half_character(value: object) -> bool:
    """Whether a JSON value holds half a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


class HalfCharacters:
    """Marks half characters in pieces of JSON before ijson reads them, which would write question marks in their place.

    Attributes:
        held: the end of the last piece, an escape of which the rest is to come.
    """

    def __init__(self) -> None:
        self.held = b""
        self._found = False

    def marked(self, piece: bytes) -> bytes:
        """Return what is to be parsed of a piece: half characters are replaced, an unfinished escape is held back."""
        piece, self.held = self.held + piece, b""
        if b"\\" in piece[-_LONGEST_END:] and not piece.endswith(b"\n"):
            end = max(0, len(piece) - _LONGEST_END)
            unfinished = _UNFINISHED.search(piece, end)
            if unfinished is not None:
                piece, self.held = piece[: unfinished.start()], unfinished[0]
        return _ALONE.sub(self._mark, piece)

    def are_in(self, text: str) -> bool:
        """Whether a string that was parsed holds half a character."""
        return self._found and _MARK in text

    def _mark(self, found: re.Match[bytes]) -> bytes:
        before = found.string[: found.start()]
        if (len(before) - len(before.rstrip(b"\\"))) % 2:  # the escape of a backslash, before ordinary letters
            return found[0]
        self._found = True
        return _ESCAPED_MARK
