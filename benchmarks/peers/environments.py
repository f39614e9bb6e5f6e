"""Make the peers' environments: one folder each, with CPU torch, the peer's packages, and a record of all versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from string import Template

from benchmarks.peers.peer_table import OURS, TORCH, Peer
from benchmarks.peers.side_runs import FAILED, PROGRAMS, VERSIONS, Place, last_line

CONSTRAINTS = f"torch=={TORCH}+cpu\ntorchvision==0.28.0\n"
"""Without them, several peers bring 4 GB of CUDA packages."""
LIST = (
    "import json; from importlib.metadata import distributions; "
    "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in reversed([*distributions()])}; "
    "print(json.dumps(found))"
)
"""Of a distribution that is there twice, borrowed and installed, the version that is imported."""


def set_up(of: Peer, place: Place, limit: float, borrow: bool = False) -> str | None:
    """Make a peer's environment anew, unless all of it is there; return why that failed, or None.

    Args:
        limit: seconds of a step of the installation.
        borrow: take from this project's environment what it has in a version that fits: minutes and 1 GB less.
    """
    home = place.environments / of.name
    if of.name == OURS or (home / VERSIONS).exists():
        return None
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        _install(of, place, home, limit, borrow)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        timed = isinstance(error, subprocess.TimeoutExpired)
        why = f"installation: {f'not done after {limit:.0f} s' if timed else last_line(home / 'install.log')}"
        (home / FAILED).write_text(why + "\n", encoding="utf-8")
        return why
    return None


def _install(of: Peer, place: Place, home: Path, limit: float, borrow: bool) -> None:
    constraints = home / "constraints.txt"
    constraints.write_text(CONSTRAINTS, encoding="utf-8")
    python = str(home / "venv/bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    steps = [
        [*pip, "install", "--constraint", str(constraints), f"torch=={TORCH}", *of.packages],
    ]
    if of.removed:
        steps.append([*pip, "uninstall", "--yes", *of.removed])
    if of.prepared:
        known = {"python": python, "programs": str(PROGRAMS), "model": str(place.model), "home": str(home)}
        steps.append([Template(part).substitute(known) for part in of.prepared])
    with (home / "install.log").open("wb") as log:
        subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], stdout=log, stderr=log, check=True)
        if borrow and of.borrows:
            (packages,) = (home / "venv/lib").glob("python*/site-packages")
            (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        for step in steps:
            subprocess.run(step, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=limit)
    listed = subprocess.run([python, "-c", LIST], capture_output=True, text=True, check=True)
    (home / VERSIONS).write_text(json.dumps(json.loads(listed.stdout), indent=1) + "\n", encoding="utf-8")
