"""Of a record of measurements: which machine and which commit it is of, and its place in RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]


def processor() -> str:
    """Return the CPU's name and its cores."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor())}, {os.cpu_count()} cores"


def commit() -> str:
    """Return which state of this project was measured."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def spread(lowest: float, highest: float, repeats: int) -> str:
    """Return what stands behind a median: between which values its repeats lie."""
    return " (1 repeat)" if repeats == 1 else f" ({lowest:.2f} to {highest:.2f}, {repeats} repeats)"


def between(text: str, begin: str, end: str, body: str) -> str:
    """Return a page with the part between two marks written anew; the rest was written by hand and stays.

    Marks that are not there yet are put at the page's end.
    """
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{body}\n\n{end}{after or chr(10)}"


def read_record(path: Path) -> dict[str, Any]:
    """Return what was measured before, or an empty record."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def show(part: str, output: Path, begin: str, end: str) -> None:
    """Print a part of the page, and write it into RESULTS.md where the record `output` is the committed one."""
    print(part)
    if output.resolve().parent == BENCHMARKS:
        results = BENCHMARKS / "RESULTS.md"
        results.write_text(between(results.read_text(encoding="utf-8"), begin, end, part), encoding="utf-8")
