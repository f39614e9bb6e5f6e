"""Numbers as people read them: counts, sizes, times and metrics."""

from __future__ import annotations

import sys
from typing import Any


def count(number: int) -> str:
    """Return a count for reading: 22,713,221."""
    return f"{number:,}"


def short_count(number: int) -> str:
    """Return a count in at most five characters: 812, 149.4K, 22.7M, 1.2B."""
    size = float(number)
    for unit in ("", "K", "M", "B"):
        if size < 1000 or unit == "B":
            return f"{size:.1f}{unit}" if unit else str(number)
        size /= 1000
    return str(number)


def byte_size(number: float) -> str:
    """Return a size for reading: 612 B, 1.2 MB; powers of 1000, as disks count."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time for reading: 8 s, 1 min 12 s, 2 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def metric(name: str, value: Any) -> str:
    """Return a metric for reading: shares as percentages, everything else to four digits."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > sys.float_info.max:
        return str(value)
    if is_share(name) and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    return f"{value:.4g}"


def is_share(metric: str) -> bool:
    """Return whether a metric of this name is a share from 0 to 1, which people read as a percentage."""
    return any(part in metric for part in ("accuracy", "f1", "precision", "recall", "exact_match"))
