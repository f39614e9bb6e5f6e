"""Text from files as a terminal, an HTML page or a picture may show it: control characters written out, not sent.

A column's name can hold the sequence that sets the title of a terminal, and a label the character that turns the rest
of a line around. Both are written as JSON writes them (`\\u001b`), so that JSON stays what it is.
"""

from __future__ import annotations

import html
import re

# C0 without tab and line feed, DEL and C1; embeddings, overrides and isolates of writing direction; half characters
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """Return a text whose control characters are written out."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape(text: str) -> str:
    """Return a text for an HTML page or an SVG picture: as `shown`, with the characters of the markup escaped."""
    return html.escape(shown(text))
