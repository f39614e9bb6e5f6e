"""The variables in which launchers tell a process which of several it is: torch's own, Slurm's, and those of MPI.

torch.distributed reads its own names only, and Accelerate reads MPI's for CPUs only. Here each launcher's are put into
torch's names, so that `srun peft train` and `mpirun peft train` are the same run as `torchrun -m peftcli train`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from peftcli.errors import UserError

FIRST_PORT, PORTS = 61440, 4096
"""The range of ports of Slurm's jobs, above those that Linux gives out by itself."""
MPI_PORT = 29500
"""Accelerate's and torch's usual port."""


@dataclass(frozen=True)
class Launcher:
    """The names of one launcher's variables.

    Args:
        size: how many processes it started.
        rank: the number of this one.
        local_rank: its number among those of this machine.
        local_size: how many there are on this machine; Slurm tells of all machines.
    """

    size: str
    rank: str
    local_rank: str
    local_size: str


_TORCH = Launcher("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# of a step that srun started; SLURM_NTASKS is also set where a batch script runs one process without srun
_SLURM = Launcher("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
LAUNCHERS = (
    _TORCH,
    Launcher("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # Intel MPI, MPICH
    Launcher(
        "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ),
    Launcher("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    _SLURM,
)
"""Each launcher that is known; the first that says how many processes there are counts. One inside another comes first:
`srun torchrun`."""


def launcher_of(environ: Mapping[str, str]) -> Launcher | None:
    """Return who started this process as one of several, None where nobody did.

    Raises:
        UserError: the number of processes is not a number.
    """
    named = next((one for one in LAUNCHERS if environ.get(one.size)), None)
    return named if named is not None and number(environ, named.size, 1) > 1 else None


def number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a variable's number.

    Raises:
        UserError: it holds something else.
    """
    try:
        return int(environ.get(name) or default)
    except ValueError as error:
        raise UserError(
            f"the environment variable {name} is {environ[name]!r}, not a number", suggestion="unset it"
        ) from error


def torch_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what torch.distributed reads, as far as another launcher says it in names of its own.

    Raises:
        UserError: the processes are on several machines, and nothing tells where the first one is.
    """
    who = launcher_of(environ)
    if who is None or who is _TORCH:
        return {}
    size, local_size = number(environ, who.size, 1), _local_size(environ, who)
    variables = {
        "RANK": str(number(environ, who.rank, 0)),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(number(environ, who.local_rank, 0)),
        "LOCAL_WORLD_SIZE": str(local_size),
    }
    if not environ.get("MASTER_ADDR"):
        variables["MASTER_ADDR"] = _first_machine(environ, who, alone=local_size == size)
    if not environ.get("MASTER_PORT"):
        variables["MASTER_PORT"] = str(_port(environ, who))
    return variables


def _local_size(environ: Mapping[str, str], who: Launcher) -> int:
    """Return how many processes this machine has; Slurm tells of each machine in turn: `4(x2),1`."""
    if who is not _SLURM:
        return number(environ, who.local_size, number(environ, who.size, 1))
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get(who.local_size, "")):
        counts += [int(count)] * int(times or 1)
    machine = number(environ, "SLURM_NODEID", 0)
    return counts[machine] if machine < len(counts) else number(environ, who.size, 1)


def _first_machine(environ: Mapping[str, str], who: Launcher, *, alone: bool) -> str:
    if alone:
        return "127.0.0.1"
    machines = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") if who is _SLURM else None
    if not machines:
        raise UserError(
            "the processes are on several machines, and MASTER_ADDR does not say where the first one is",
            suggestion="pass it on to all: mpirun -x MASTER_ADDR=HOST (Open MPI), -genv MASTER_ADDR HOST (Intel MPI)",
        )
    return first_host(machines)


def first_host(machines: str) -> str:
    """Return the first machine of Slurm's list, such as `gpu[03-05,9],login1`."""
    found = re.match(r"([^,\[]*)(?:\[([^],-]*)[^]]*]([^,\[]*))?", machines)
    return "".join(part or "" for part in found.groups()) if found else machines


def _port(environ: Mapping[str, str], who: Launcher) -> int:
    """Return a port that the processes agree on without a word; jobs on one machine have different ones."""
    if who is not _SLURM:
        return MPI_PORT
    job = number(environ, "SLURM_JOB_ID", 0) * 7 + number(environ, "SLURM_STEP_ID", 0)
    return FIRST_PORT + job % PORTS
