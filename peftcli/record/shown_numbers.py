"""Numbers as people read them: counts, sizes, times and metrics."""

from __future__ import annotations

import re
import sys
from typing import Any

from peftcli.errors import UserError

_UNITS = {"": 1, "B": 1} | {f"{letter}{end}": base**power for end, base in (("B", 1000), ("IB", 1024))
                            for power, letter in enumerate("KMGT", start=1)}  # fmt: skip


_EXPONENT_FROM = 1e12


def count(number: int) -> str:
    """Return a count for reading: 22,713,221."""
    return f"{number:,}"


def short_count(number: int) -> str:
    """Return a count in few characters, six below 1,000 billions: 812, 149.4K, 22.7M, 1.2B."""
    if number < 1000:
        return str(number)
    for unit, size in (("K", 1e3), ("M", 1e6)):
        if round(number / size, 1) < 1000:
            return f"{number / size:.1f}{unit}"
    return f"{number / 1e9:.1f}B"


def byte_size(number: float) -> str:
    """Return a size for reading: 612 B, 1.2 MB; powers of 1000, as disks count."""
    for unit, digits in (("B", 0), ("KB", 1), ("MB", 1), ("GB", 1)):
        if round(number, digits) < 1000:
            return f"{number:.{digits}f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def bytes_of(option: str, text: str) -> int:
    """Return the bytes of a size that was typed, such as 5GB, 500MB or 2GiB.

    Args:
        option: that the text was given to, for the message.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)\s*", text.upper())
    unit = _UNITS.get(found.group(2)) if found else None
    size = float(found.group(1)) * unit if found and unit else 0.0
    if not 1 <= size < 2**63:  # of a text of 400 digits it is infinite
        raise UserError(f"{option} {text!r} is not a size", suggestion="write it as 5GB, 500MB or 2GiB")
    return int(size)


def duration(seconds: float) -> str:
    """Return a time for reading: 8 s, 1 min 12 s, 2 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def figures(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, large ones whole instead of with an exponent: 0.399, 1,720."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text


def metric(name: str, value: Any) -> str:
    """Return a metric for reading: shares as percentages, counts whole, everything else to four digits (10.70)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > sys.float_info.max:
        return str(value)
    if is_share(name) and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    if isinstance(value, int) or 10_000 <= abs(value) < _EXPONENT_FROM:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


_SHARE = re.compile(r"(^|_)(accuracy|exact_match|precision|recall|f1(_macro|_micro|_weighted)?)$")


def is_share(metric: str) -> bool:
    """Return whether a metric of this name is a share from 0 to 1, which people read as a percentage.

    The name of a validation set may stand before it: the loss of a set `recall_2024` is no share.
    """
    return _SHARE.search(metric) is not None
