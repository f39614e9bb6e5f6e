"""`${NAME}` in the values of a recipe is an environment variable; `$${NAME}` is the text `${NAME}`, in keys, too."""

from __future__ import annotations

import re
from collections.abc import Mapping

from peftcli.suggestions import nearest

_REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class MissingVariable(Exception):
    """A `${NAME}` that cannot be replaced."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Return `text` with every `${NAME}` replaced by the variable's value.

    Raises:
        MissingVariable: a variable is not set, or a `${` is not followed by a name and `}`.
    """

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "${"
        name = match[2]
        if not match[3] or not _NAME.fullmatch(name):
            raise MissingVariable(
                f"{match[0]!r} is not a reference to an environment variable",
                "write ${NAME}, or $${ for the text itself",
            )
        if name not in environ:
            near = nearest(name, environ, cutoff=0.8)
            meant = f"; there is {near[0]}" if near else ""
            raise MissingVariable(
                f"the environment variable {name} is not set{meant}",
                f"export {name}=..., or write $${{{name}}} for the text itself",
            )
        return environ[name]

    return _REFERENCE.sub(fill, text) if "${" in text else text


def names_in(text: str) -> list[str]:
    """Return the variables that a text refers to."""
    return [match[2] for match in _REFERENCE.finditer(text) if not match[1]] if "${" in text else []


def escape(text: str) -> str:
    """Return the text from which `expand` makes `text`."""
    return text.replace("${", "$${")
