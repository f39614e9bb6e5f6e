"""What Ollama reads in a Modelfile: the grammar of parser/parser.go of ollama/ollama at fb30760, written out.

A file is a sequence of commands, with comments (`#` up to the end of a line) and blanks between them. A command is a
word, blanks, and a value. `PARAMETER` has a second word, the parameter's name, in front of its value. A value ends with
its line, unless it begins with a quote: then it goes on until a line (or the file) ends with the quotes that it began
with, three or one. The quotes are taken off. Signs that cannot be printed are dropped, but for tabs and line ends
within quotes.
"""

from __future__ import annotations

import re

COMMANDS = {
    "FROM", "LICENSE", "TEMPLATE", "SYSTEM", "ADAPTER", "DRAFT", "RENDERER", "PARSER", "PARAMETER", "MESSAGE",
    "REQUIRES",
}  # fmt: skip


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Return the commands with their values; a parameter has its name for a command.

    Raises:
        ValueError: there is an unknown command, a quote without an end, or no FROM.
    """
    found: list[tuple[str, str]] = []
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)
    while lines:
        line = lines.pop(0).lstrip(" \t")
        if not line.strip() or line.startswith("#"):
            continue
        name, value = _word(line)
        if name.upper() not in COMMANDS:
            raise ValueError(f"no command: {name!r}")
        if name.upper() == "PARAMETER":
            name, value = _word(value.lstrip(" \t"))
        while (whole := _unquoted(value)) is None:
            if not lines:
                raise ValueError(f"a quote of {name} has no end")
            value += lines.pop(0)
        found.append((name, "".join(sign for sign in whole if sign.isprintable() or sign in "\n\r\t")))
    if "FROM" not in [name.upper() for name, _ in found]:
        raise ValueError("no FROM")
    return found


def _word(line: str) -> tuple[str, str]:
    """Return the first word, and what comes after the blank behind it."""
    word, _, rest = re.sub("[ \t]", " ", line, count=1).partition(" ")
    return word, rest


def _unquoted(value: str) -> str | None:
    """Return a value without its quotes; None where they do not end yet."""
    value = value.strip()
    for quote in ('"""', '"'):
        if value.startswith(quote):
            ended = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if ended else None
    return value
