"""Where and when a study was measured: the processor, the versions of the libraries, the day."""

from __future__ import annotations

import datetime
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli import __version__
from peftcli.distributed.usable_cores import usable_cores
from peftcli.installed_versions import installed_versions


@dataclass(kw_only=True)
class MeasuredWhere:
    """The part of a study's record that says where it was measured.

    Args:
        machine: the processor and its cores; `versions`: of libraries by name; `date`: as 2026-11-29.
        command: as it was typed.
        version: of the record's format.
    """

    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    version: int = 1


def measured_here() -> dict[str, Any]:
    """Return `machine`, `versions` and `date` of a `MeasuredWhere` that is measured here and now."""
    return {"machine": machine_name(), "versions": library_versions(), "date": today()}


def machine_name() -> str:
    """Return the processor's name and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {usable_cores()} cores"


def library_versions() -> dict[str, str]:
    """Return the versions of what trains and of what decides."""
    own = {"peftcli": __version__, "python": sys.version.split()[0]}
    return own | installed_versions("torch", "transformers", "accelerate", "bitsandbytes", "optuna", "numpy")


def today() -> str:
    """Return the date as 2026-11-29, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
