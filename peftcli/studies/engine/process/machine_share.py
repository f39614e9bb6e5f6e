"""What each job of a worker gets of the machine: threads on a CPU, a CUDA device of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from peftcli.distributed.usable_cores import usable_cores

_DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
"""What Linux has where CUDA or ROCm may have a device; without them torch need not be imported to know."""


@dataclass(frozen=True)
class MachineShare:
    """Of one job.

    Args:
        threads: of its tensor operations; None leaves them as `peft train` has them.
        environment: variables on top of the worker's.
        warm: whether its processes may be forked from one that has imported torch: on Linux, without CUDA.
    """

    threads: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    warm: bool = False


def machine_shares(jobs: int) -> list[MachineShare]:
    """Return the shares of jobs that train at once.

    Args:
        jobs: 1 gets the whole machine, as `peft train` does.
    """
    devices = _cuda_devices()
    threads = None if jobs == 1 else max(1, _cores() // jobs)
    warm = sys.platform == "linux" and not devices
    if jobs == 1 or not devices:
        return [MachineShare(threads, {}, warm) for _ in range(jobs)]
    own = [{"CUDA_VISIBLE_DEVICES": devices[job % len(devices)]} for job in range(jobs)]
    return [MachineShare(threads, environment, warm) for environment in own]


def _cores() -> int:
    """Return how many threads the processes of this worker may run together: OMP_NUM_THREADS limits them."""
    cores = usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


def _cuda_devices() -> list[str]:
    """Return the CUDA devices as CUDA_VISIBLE_DEVICES names them."""
    if sys.platform == "darwin" or (sys.platform == "linux" and not any(file.exists() for file in _DEVICE_FILES)):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else []
    count = torch.cuda.device_count()
    return names[:count] if len(names) >= count else [str(number) for number in range(count)]
