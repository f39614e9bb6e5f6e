"""Row templates: a text made of columns, such as 'Q: {question} A:'."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.read.nested_values import is_infinite, is_nothing
from peftcli.data.read.records import RowError
from peftcli.errors import Problem, UserError
from peftcli.suggestions import did_you_mean, nearest


@dataclass(frozen=True)
class RowTemplate:
    """A text with columns in braces; braces of the text itself are doubled.

    Args:
        text: as the recipe has it.
        parts: (text, column or None) in order.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> RowTemplate:
        """Read a template.

        Raises:
            UserError: braces do not match, or hold something else than a column's name.
        """
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise _problem(f"the template {text!r} cannot be read: {error}") from error
        for _, name, spec, conversion in pieces:
            if name == "" or spec or conversion:
                raise _problem(f"the template {text!r} has braces without a plain column name")
        # the name is used as it stands, never as an attribute or index path: a row cannot reach into Python objects
        return cls(text, tuple((literal, name) for literal, name, _, _ in pieces))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the text is made of."""
        return tuple(name for _, name in self.parts if name is not None)

    def check(self, present: Sequence[str], source: str) -> None:
        """Raise a `UserError` naming the columns that a file does not have."""
        missing = [name for name in self.columns if name not in present]
        if missing:
            near = nearest(missing[0], present, most=2, cutoff=0.5)
            raise UserError(
                Problem(
                    f"the template names {', '.join(missing)}; the columns are {', '.join(present) or '(none)'}",
                    file=source or None,
                    key="data.template",
                    suggestion=did_you_mean(near) or None,
                )
            )

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text for a row; an absent value, null, NaN and infinity are errors of the row."""
        out = []
        for literal, name in self.parts:
            out.append(literal)
            if name is not None:
                value = values.get(name)
                if is_nothing(value):
                    raise RowError(f"the column {name!r} of the template is empty", f"a value in {name!r}")
                if is_infinite(value):
                    raise RowError(f"the column {name!r} of the template is an infinite number", "text, or a number")
                out.append(value if isinstance(value, str) else str(value))
        return "".join(out)


def _problem(message: str) -> UserError:
    return UserError(
        Problem(message, key="data.template", suggestion="write columns as {name}, and a brace itself as {{ or }}")
    )
