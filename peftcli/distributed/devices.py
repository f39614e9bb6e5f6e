"""The device that a run computes on: choosing it, its free memory, and the most that a run held of it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from peftcli.errors import Problem, UserError

CGROUP = Path("/sys/fs/cgroup")
"""Where a container's limit is, on Linux."""


def pick_device(name: str) -> torch.device:
    """Return the device to compute on; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the named device is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        there = ", ".join(kind for kind, found in available.items() if found)
        problem = Problem(
            f"this machine has no {name} device", key="training.device", suggestion=f"here: auto, {there}"
        )
        raise UserError(problem)
    return torch.device(name)


def check_devices(device: torch.device, processes: int) -> None:
    """See to it that each process of this machine has a CUDA device of its own; a CPU is shared.

    Raises:
        UserError: there are fewer.
    """
    if device.type != "cuda" or processes <= (found := torch.cuda.device_count()):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    message = f"{processes} processes on this machine, and it has {found} CUDA device{'s' * (found != 1)}{seen}"
    fewer = f"start {found} at most, or " if found else ""
    raise UserError(message, suggestion=f"{fewer}set training.device: cpu")


def usable_device(name: str) -> torch.device:
    """Return the device of training if this machine has it, else the best that it has: using a run needs no other."""
    try:
        return pick_device(name)
    except UserError:
        return pick_device("auto")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the run held: allocated on CUDA, else resident in this process (0: unknown)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if os.name == "nt":
        return 0
    with suppress(OSError, StopIteration):  # getrusage also counts what the process was before it became Python
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024  # kilobytes, but for macOS


def free_bytes(device: torch.device, processes: int = 1) -> int | None:
    """Return the memory that a process can still take, None where nothing tells.

    Args:
        processes: that share a CPU's memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return None
    import psutil  # comes with accelerate

    return min(int(psutil.virtual_memory().available), _left_in_container()) // processes


def _left_in_container() -> int:
    """Return what a container's limit leaves, a huge number without one; files that were read give way."""
    try:
        limit, current = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        found = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - current + int(found["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no such files, or "max"
        return 2**63
