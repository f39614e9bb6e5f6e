"""Text as comments of a recipe."""

from __future__ import annotations

import textwrap

from peftcli.shown_text import shown

_WIDTH = 100


def comment_lines(text: str, first: str = "# ", then: str = "#   ") -> list[str]:
    """Return a text as comment lines; what ends a line or controls a terminal in it, as names of columns can, does not.

    Args:
        text: any.
        first, then: what the first line and the others begin with.
    """
    words = " ".join(shown(text).split())
    parts = textwrap.wrap(words, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{then if number else first}{part}" for number, part in enumerate(parts)]
