"""A run whose recipe left the learning rate open: its recipe.yaml has the rate and a line that says so.

The line is a comment, so that the file stays an ordinary recipe. With it, the recipe that left the rate open and the
one in the run are the same recipe, and the run goes on at its own rate whatever a later version would choose.
"""

from __future__ import annotations

import re

_START = "# training.learning_rate was left open: "


def with_open_rate(text: str, reason: str) -> str:
    """Return the text of a resolved recipe with the line that says where its learning rate is from."""
    return f"{_START}{' '.join(reason.split())}\n{text}"


def open_rate_reason(text: str) -> str | None:
    """Return where the learning rate is from, or None if the recipe that was trained stated one."""
    found = re.search(f"^{re.escape(_START)}(.*)$", text, flags=re.MULTILINE)
    return found.group(1) if found else None
