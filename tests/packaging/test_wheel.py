"""The wheel holds the whole package, and works where the clone is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import peftcli
from tests.command_line import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
COMMANDS = """
import json, sys
import peftcli
from peftcli.cli.app import main

print(peftcli.__file__, flush=True)
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{arguments}: {stop.code}")
"""
"""All commands in one process: each process of its own would import torch again."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of the tree: a build leaves files, and takes in what an old one left."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "peftcli", tree / "peftcli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tree / "recipes")
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = (tree / "dist").glob("*.whl")
    return found


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "peftcli").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    here |= {f"peftcli/starting/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert packed == here


def test_the_version_is_written_in_one_place(wheel: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"^version\b.*", project, flags=re.M) == ['version = { attr = "peftcli.__version__" }']
    assert wheel.name.split("-")[1] == peftcli.__version__


def test_the_changelog_begins_with_what_is_not_released_or_with_this_version() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert headings[0] == "## Unreleased" or headings[0].split()[1] == peftcli.__version__


def test_the_wheel_does_the_demo_outside_the_clone(wheel: Path, workspace: Workspace, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    entry = (installed / "bin" / "peft").read_text(encoding="utf-8") if os.name == "posix" else "peftcli.__main__"
    assert "peftcli.__main__" in entry  # `peft` starts it
    recipe = str(workspace.recipe("wheel", training__max_steps=2, data__cache_dir=str(tmp_path / "cache")))
    run = str(tmp_path / "run")
    commands = [
        ["--version"],
        ["validate", recipe],
        ["methods"],
        ["recipes", "list"],
        ["schema"],
        ["count-params", recipe],
        ["train", recipe, "-o", run, "--quiet"],
        ["report", run, "-o", str(tmp_path / "report.html")],  # puts page.css and page.js into the page
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(installed))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "report.html").exists()
    assert list(empty.iterdir()) == []
