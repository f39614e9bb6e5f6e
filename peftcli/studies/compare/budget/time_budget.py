"""`--budget 40m`: a length of time, and how much of it earlier starts of the same command have used."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

from peftcli.atomic import write_text
from peftcli.errors import UserError

_UNITS = {"h": 3600, "m": 60, "min": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|min|m|s)")

LONGEST = 366 * 86400.0
"""Seconds; more is a mistake."""


def parse_budget(text: str) -> float:
    """Return the seconds of `90s`, `40m`, `2h` or `1h30m`.

    Raises:
        UserError: it is no length of time, or none at all.
    """
    parts = _PART.findall(text.replace(" ", "").lower())
    written = "".join(number + unit for number, unit in parts)
    if not parts or written != text.replace(" ", "").lower():
        raise UserError(f"--budget {text} is no length of time", suggestion="write it as 90s, 40m, 2h or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > LONGEST:
        remedy = "leave it out: without a budget nothing is shortened"
        raise UserError(f"--budget {text[:40]} is longer than a year", suggestion=remedy)
    if seconds <= 0:
        raise UserError(f"--budget {text} leaves no time", suggestion="write it as 90s, 40m, 2h or 1h30m")
    return seconds


class SpentTime:
    """How long a study has been worked on, over all starts of the command and all machines that helped.

    Each start has a file below `sessions/` with when it began and when it was last seen. A killed start counts up to
    the last trial that began or ended; starts that worked at the same time count once.

    Args:
        directory: the study's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "sessions"
        self._began = time.time()
        self._file = self._directory / f"{socket.gethostname()}-{os.getpid()}-{self._began:.0f}.json"

    def seen(self) -> None:
        """Write down that this start is still at work."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_text(self._file, json.dumps({"began": self._began, "seen": time.time()}) + "\n")

    def seconds(self) -> float:
        """Return the time in which at least one start was at work, up to now."""
        return covered([*self._others(), (self._began, time.time())])

    def _others(self) -> list[tuple[float, float]]:
        found = []
        for file in self._directory.glob("*.json") if self._directory.is_dir() else ():
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                found.append((float(data["began"]), float(data["seen"])))
            except (OSError, ValueError, KeyError, TypeError):  # being written, or damaged: it counts for nothing
                continue
        return found


def covered(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
