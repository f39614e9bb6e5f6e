"""Text as a terminal, an HTML page or a picture may show it: control characters written out, secrets hidden, lists cut.

A column's name can hold the sequence that sets the title of a terminal, and a label the character that turns the rest
of a line around. Both are written as JSON writes them (`\\u001b`), so that JSON stays what it is.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence

# C0 without tab and line feed, DEL and C1; embeddings, overrides and isolates of writing direction; half characters
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_SECRETIVE = re.compile("TOKEN|KEY|SECRET|PASS|PWD|CRED|AUTH", re.IGNORECASE)
_PASSWORD = re.compile(r"(\w+://)[^/\s@:]*:[^/\s@]+@")
_hidden: dict[str, str] = {}
"""Values of environment variables that are not shown, and the variables' names."""


def hide(name: str, value: str) -> None:
    """Show an environment variable's value as `${NAME}` from here on, if it may be a secret.

    That is one whose name says so, or a long one that is neither a number nor a path.
    """
    long = len(value) >= 8 and not value.startswith(("/", "~", ".")) and not os.path.exists(value)
    if len(value) >= 4 and (long or _SECRETIVE.search(name)):
        _hidden[value] = name


def hide_nothing() -> None:
    """Forget what `hide` was told: another command begins."""
    _hidden.clear()


def without_secrets(text: str) -> str:
    """Return a text without hidden values, and without the passwords of URLs."""
    for value, name in _hidden.items():
        if value in text:
            text = text.replace(value, f"${{{name}}}")
    return _PASSWORD.sub(r"\1***@", text) if "://" in text else text


def shown(text: str) -> str:
    """Return a text whose control characters are written out, without secrets."""
    text = without_secrets(text)
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape(text: str) -> str:
    """Return a text for an HTML page or an SVG picture: as `shown`, with the characters of the markup escaped."""
    return html.escape(shown(text))


def all_of(names: Sequence[str], last: str = "and") -> str:
    """Return `a, b and c`, or with another word before the last name."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def some_of(names: Sequence[object], most: int) -> str:
    """Return `a, b and 3 more`: so many names at most, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, else the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
