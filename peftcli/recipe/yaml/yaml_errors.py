"""Errors of YAML: PyYAML's message as a line number, a sentence and a remedy."""

from __future__ import annotations

import yaml

_SENTENCES = (  # a part of PyYAML's message, what is wrong, what to do
    ("'\\t'", "a tab, where YAML allows only spaces", "indent with spaces"),
    (
        "mapping values are not allowed",
        "a second ':' in the line, or an indentation that does not match the line above",
        "quote the value if it contains ':', or align the key with its neighbours",
    ),
    (
        "could not find expected ':'",
        "a key without ':'",
        "write `key: value`; a text of several lines needs quotes or `|`",
    ),
    ("expected <block end>", "the indentation does not match the lines above", "align the keys of one block"),
    ("expected ',' or ']'", "a list that is not closed", "close it with ']' and separate its elements with ','"),
    (
        "expected ',' or '}'",
        "a mapping in braces that is not closed",
        "close it with '}'; inside braces `${NAME}` needs quotes",
    ),
    ("found unexpected end of stream", "a quoted text that is not closed", "add the missing quote"),
    (
        "expected alphabetic or numeric character",
        "a value that starts with '*' or '&', which is an alias in YAML",
        "quote it: '*.jsonl'",
    ),
    (
        "cannot start any token",
        "a character that cannot start a value",
        "quote the value",
    ),
    ("unknown escape character", "an unknown escape (a backslash) in double quotes", "use single quotes"),
    ("unacceptable character", "a control character", "remove it; recipes are plain UTF-8 text"),
    ("special characters are not allowed", "a control character", "remove it; recipes are plain UTF-8 text"),
)
_OPENED_BEFORE = ("expected ',' or", "found unexpected end of stream", "could not find expected ':'")
"""Messages of errors whose cause is where something was opened, which is not where PyYAML noticed it."""

_ELSE = "look at this line and the one above: `key: value`, indented with spaces, special characters in quotes"


class YamlProblem(Exception):
    """A text that is not one plain YAML document."""

    def __init__(self, message: str, line: int | None, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.suggestion = suggestion


def explain_yaml_error(error: yaml.YAMLError, text: str) -> YamlProblem:
    """Return PyYAML's error with a line, a sentence and a remedy."""
    complaint = " ".join(str(error).split())
    opened = any(part in complaint for part in _OPENED_BEFORE)
    line = _line(error, text, opened)
    for part, message, suggestion in _SENTENCES:
        if part in complaint:
            return YamlProblem(f"not YAML: {message}", line, suggestion)
    problem = getattr(error, "problem", None) or complaint
    return YamlProblem(f"not YAML: {problem}", line, _ELSE)


def _line(error: yaml.YAMLError, text: str, opened: bool) -> int | None:
    marks = [getattr(error, "problem_mark", None), getattr(error, "context_mark", None)]
    mark = next((mark for mark in (reversed(marks) if opened else marks) if mark is not None), None)
    if mark is not None:
        return int(mark.line) + 1
    position = getattr(error, "position", None)
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else None
