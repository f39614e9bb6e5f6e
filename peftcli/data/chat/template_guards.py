"""What the operations of a Jinja template are charged whose result can be far larger than what they are given.

Each guard is called before its operation, with the function that charges an account, and returns the arguments to use.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

Charge = Callable[[int], None]
Guard = Callable[[Charge, list[Any], dict[str, Any]], list[Any]]

REFUSED = frozenset(["urlize", "striptags", "pprint"])
"""Filters for web pages, whose time grows with the square of a text."""

_SIZED = (str, bytes, list, tuple)
_WIDEST = 10_000  # digits of an integer, in the sense of 10**n
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")


def binary(charge: Charge, operator: str, left: Any, right: Any) -> None:
    """Charge `left operator right`."""
    if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
        charge(len(left) + len(right))
        return
    if operator == "*":
        for some, times in ((left, right), (right, left)):
            if isinstance(some, _SIZED) and isinstance(times, int):
                charge(len(some) * max(times, 0))
    if operator == "%" and isinstance(left, str):
        percent_fields(charge, left)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(abs(right), 1) if operator == "**" else 1)
        charge(bits // 8 if bits < 8 * _WIDEST else bits * bits)  # products of huge integers take the square


def percent_fields(charge: Charge, text: str) -> None:
    """Charge the widths and precisions of `text % values`."""
    for match in _PERCENT.finditer(text):
        for size in match.groups():
            charge(10**12 if size == "*" else _number(size))


def format_fields(charge: Charge, text: str) -> None:
    """Charge the widths and precisions of `text.format(...)`; a width that is an argument cannot be known."""
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError:
        return  # formatting says what is wrong
    for _, _, spec, _ in fields:
        if spec and "{" in spec:
            charge(10**12)
        for digits in re.findall(r"\d+", spec or ""):
            charge(_number(digits))


def _number(digits: str | None) -> int:
    return 10**12 if digits and len(digits) > 12 else int(digits or 0)


def _int(value: Any) -> int:
    """Return what a count or a width may ask for; 0 for a value that is none."""
    return abs(value) if isinstance(value, int) else 0


def _extra(arguments: list[Any], keywords: Mapping[str, Any]) -> int:
    """Return the largest width among the arguments behind the first: a number, or a text's length."""
    return max([0, *(len(one) if isinstance(one, str) else _int(one) for one in (*arguments[1:], *keywords.values()))])


def _width(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    charge(_extra(arguments, keywords))
    return arguments


def _for_each_line(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    charge((str(arguments[0]).count("\n") + 1) * _extra(arguments, keywords) if arguments else 0)
    return arguments


def _for_each_character(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    charge(len(str(arguments[0])) * (1 + _extra(arguments, keywords)) if arguments else 0)
    return arguments


def _json(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    indent = keywords.get("indent", arguments[2] if len(arguments) > 2 else None)
    separators = keywords.get("separators", arguments[3] if len(arguments) > 3 else None)
    wide = len(indent) if isinstance(indent, str) else _int(indent)
    if isinstance(separators, list | tuple):
        wide += sum(len(one) for one in separators if isinstance(one, str))
    count, deep = _places(arguments[0]) if arguments else (0, 0)
    charge(count * (1 + deep * wide))
    return arguments


def _places(value: Any) -> tuple[int, int]:
    """Return how many values a nested value holds, and how deep it is; the limits on values keep both small."""
    count, deep, level = 0, 0, [value]
    while level:
        count += len(level)
        deep += 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += one.values()
            elif isinstance(one, list | tuple):
                inner += one
        level = inner
    return count, deep


def _precision(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    extra = _extra(arguments, keywords)
    charge(extra * extra)
    return arguments


def _replaced(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    if len(arguments) + len(keywords) >= 3 and arguments:
        text = str(arguments[0])
        old, new = [*map(str, arguments[1:3]), *map(str, keywords.values())][:2]
        charge(len(text) + text.count(old) * len(new))
    return arguments


def _join(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    """Charge what stands between the values; the values are written out by `join` itself."""
    if not arguments:
        return arguments
    values = arguments[0]
    values = values if isinstance(values, str | list | tuple | Mapping) else list(values)
    between = keywords.get("d", arguments[1] if len(arguments) > 1 else "")
    charge(len(values) * (1 + len(str(between))))
    for value in values:
        charge(len(value) if isinstance(value, str) else _places(value)[0])
    return [values, *arguments[1:]]


def _sum(charge: Charge, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    """Charge the sum of lists: each step copies what there is."""
    start = keywords.get("start", arguments[2] if len(arguments) > 2 else 0)
    if isinstance(start, int | float) or not arguments:
        return arguments
    values = list(arguments[0])
    charge(len(values) * sum(len(value) for value in values if isinstance(value, list | tuple)))
    return [values, *arguments[1:]]


def _format(charge: Charge, arguments: list[Any], _keywords: dict[str, Any]) -> list[Any]:
    if arguments:
        percent_fields(charge, str(arguments[0]))
    return arguments


FILTER_GUARDS: Mapping[str, Guard] = {
    "center": _width,
    "batch": _width,
    "slice": _width,
    "truncate": _width,
    "round": _precision,
    "indent": _for_each_line,
    "wordwrap": _for_each_character,
    "tojson": _json,
    "replace": _replaced,
    "join": _join,
    "sum": _sum,
    "format": _format,
}
"""By filter; the first argument is the value."""

CallGuard = Callable[[Charge, Any, list[Any], dict[str, Any]], list[Any]]


def _on(guard: Guard) -> CallGuard:
    """Return the guard of a method that does what a filter does; `owner` is the object of the method."""

    def method(charge: Charge, owner: Any, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
        return guard(charge, [owner, *arguments], keywords)[1:]

    return method


def _method_join(charge: Charge, owner: Any, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    return _join(charge, [*arguments, owner], keywords)[: len(arguments)]


def _translate(charge: Charge, owner: Any, arguments: list[Any], _keywords: dict[str, Any]) -> list[Any]:
    table = arguments[0] if arguments else None
    texts = table.values() if isinstance(table, Mapping) else ()
    longest = max([1, *(len(text) for text in texts if isinstance(text, str))])
    charge(len(owner) * longest if isinstance(owner, str | bytes) else 0)
    return arguments


def _date(charge: Charge, _owner: Any, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    """Charge the widths of a date's format, such as `%010d`."""
    for text in (*arguments, *keywords.values()):
        for digits in re.findall(r"\d+", str(text)):
            charge(_number(digits))
    return arguments


CALL_GUARDS: Mapping[str, CallGuard] = {
    **dict.fromkeys(["center", "ljust", "rjust", "zfill", "to_bytes"], _on(_width)),
    "expandtabs": _on(_for_each_character),
    "replace": _on(_replaced),
    "join": _method_join,
    "translate": _translate,
    "strftime_now": _date,
}
"""By the name of a method or function."""
