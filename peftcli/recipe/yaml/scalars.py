"""The scalar values of YAML 1.2's core schema: reading them, and showing a value in a message.

This is not left to PyYAML because it follows YAML 1.1, which reads `1e-4` as text, `yes` and `no` as booleans, `012` as
octal and `1:30` as 90. The core schema of YAML 1.2 (chapter 10.3.2) does not.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST_NUMBER = 400  # characters; CPython refuses to parse integers above 4300 digits

Scalar = str | int | float | bool | None


def read_scalar(text: str) -> Scalar:
    """Return the value of a plain (unquoted) scalar under the core schema of YAML 1.2.

    Raises:
        ValueError: an integer with too many digits.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        if len(text) > _LONGEST_NUMBER:
            raise ValueError(f"a number with {len(text)} digits")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text


_KINDS = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def show(value: Any, limit: int = 60) -> str:
    """Return a value as it is written in a recipe, shortened to `limit` characters."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, dict) and len(value) > 3:
        text = f"a mapping of {len(value)} keys"
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= limit:
        return text
    return f"{text[: limit - 4]}...{text[-1]}"


def kind(value: Any) -> str:
    """Return a value's type in words."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def parts_at_commas(text: str) -> list[str]:
    """Divide a text at the commas that stand in no brackets, braces or quotes; parts are as written, also empty ones.

    >>> parts_at_commas("[attn.q,attn.v],'a,b', 4")
    ['[attn.q,attn.v]', "'a,b'", ' 4']
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
