"""How many processor cores this process may use: fewer than the machine has, in a container or under `taskset`."""

from __future__ import annotations

import os
from pathlib import Path

LIMITS = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of a container."""


def usable_cores() -> int:
    """Return the cores that the system lets this process use, at least one.

    A container's limit on processor time counts as whole cores: 1.5 of them keep one thread busy.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _time_limit()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def _time_limit() -> float | None:
    """Return the seconds of processor time that a container gets in a second, None without a limit."""
    try:
        if (LIMITS / "cpu.max").is_file():
            quota, period = (LIMITS / "cpu.max").read_text().split()
        else:  # the older kind
            quota, period = ((LIMITS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such files, or "max"
        return None
