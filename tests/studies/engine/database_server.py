"""A real PostgreSQL server for a test: Debian's programs as a user who is not root, else the package pgserver."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the URL of a server that listens at a socket file."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pgserver = pytest.importorskip("pgserver")
        home = tempfile.mkdtemp(prefix="pg-")
        server = pgserver.get_server(home, cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
        return
    home = tempfile.mkdtemp(prefix="pg-", dir="/tmp")  # the path of a socket is short
    user = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(home, user)
    options = {"check": True, "capture_output": True, "cwd": home} | ({"user": user} if user else {})
    data, log = f"{home}/data", f"{home}/log"
    subprocess.run([programs[-1] / "initdb", "-D", data, "-U", "me", "-A", "trust", "-N"], **options)
    control = [programs[-1] / "pg_ctl", "-D", data, "-w"]
    settings = f"-k {home} -c listen_addresses= -c fsync=off"
    subprocess.run([*control, "-l", log, "-o", settings, "start"], **options | {"capture_output": False})
    try:
        yield f"postgresql://me@/postgres?host={home}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **options | {"check": False})
        shutil.rmtree(home, ignore_errors=True)
