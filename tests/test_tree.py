"""The tree stays readable: sizes of rooms, files and functions, what a room may hold, names used once, docstrings.

A room is a folder of Python files.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from peftcli.cli.app import COMMANDS
from peftcli.names import NAMES
from peftcli.protocol.registry import registry

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "peftcli"
PARTS = ("peftcli", "tests", "benchmarks", "docs")
"""Where the limits on sizes hold."""

FILES_A_ROOM = 16
LINES_A_FILE = 400
LINES_A_FUNCTION = 60

ENTRIES = {"cli": {"app", *COMMANDS}, "methods": set(registry.names())}
"""Rooms with one file an entry, however many entries there are: what they hold."""


def python_files(folder: Path) -> list[Path]:
    """Return the Python files below a folder, sorted."""
    found = sorted(folder.rglob("*.py"))
    assert found, folder
    return found


ALL_FILES = [path for part in PARTS for path in python_files(ROOT / part)]
MODULES = python_files(PACKAGE)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield (dotted name, lines) of each function in a module, methods and inner functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                yield prefix + node.name, node.end_lineno - node.lineno + 1
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def test_no_room_holds_too_many_files() -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in ALL_FILES:
        counts[relative(path.parent)] += path.name not in ("__init__.py", "conftest.py")
    crowded = {room for room, number in counts.items() if number > FILES_A_ROOM}
    assert crowded - {f"peftcli/{room}" for room in ENTRIES} == set()


def test_no_file_is_too_long() -> None:
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES}
    assert {name for name, number in lines.items() if number > LINES_A_FILE} == set()


def test_no_function_is_too_long() -> None:
    found = {
        f"{relative(path)}:{name}"
        for path in ALL_FILES
        for name, lines in functions(parsed(path))
        if lines > LINES_A_FUNCTION
    }
    assert found == set()


@pytest.mark.parametrize("room", ENTRIES)
def test_a_room_of_entries_holds_nothing_else(room: str) -> None:
    held = {path.name.removesuffix(".py") for path in (PACKAGE / room).iterdir() if path.name != "__pycache__"}
    assert held - {"__init__"} == ENTRIES[room]


def test_a_name_is_used_once() -> None:
    """Modules and rooms alike, but for `__init__` and what users name: methods, tasks, formats, libraries, commands."""
    libraries = {path.name for path in (PACKAGE / "adapters").iterdir() if path.is_dir()}
    exempt = {"__init__", *registry.names(), *NAMES.tasks, *NAMES.formats, *libraries, *COMMANDS}
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        places[path.stem].append(relative(path))
        if path.name == "__init__.py":
            places[path.parent.name].append(relative(path.parent))
    repeated = {name for name, found in places.items() if len(found) > 1 and name not in exempt}
    assert repeated == set(), {name: places[name] for name in repeated}


def test_the_ignored_label_is_written_once() -> None:
    """-100 as a number; labels are made, padded, lengthened and read in many rooms."""
    holders = [
        relative(path)
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant) and node.operand.value == 100
    ]
    assert holders == ["peftcli/ignored_label.py"]


def test_every_module_says_what_it_holds() -> None:
    trees = {relative(path): parsed(path) for path in ALL_FILES}
    assert [name for name, tree in trees.items() if tree.body and ast.get_docstring(tree) is None] == []


def test_every_room_says_what_it_holds() -> None:
    for room in {path.parent for path in MODULES}:
        text = ast.get_docstring(parsed(room / "__init__.py"))
        assert text is not None and len(text.split()) >= 3, f"{relative(room)}/__init__.py: say what the room holds"


def test_no_test_takes_the_time() -> None:
    """Seconds are for benchmarks/; what has to happen first is waited for, by an event or a pipe."""
    tests = [path for path in python_files(ROOT / "tests") if path.name.startswith("test_")]
    modules = {
        relative(path): {
            name.name for node in ast.walk(parsed(path)) if isinstance(node, ast.Import) for name in node.names
        }
        | {node.module for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom)}
        for path in tests
    }
    assert {name for name, imported in modules.items() if "time" in imported} == set()


def test_every_test_is_on_the_list_of_promises() -> None:
    tests = ROOT / "tests"
    named = re.findall(r"`([\w/]+(?:/|\.py))`", (tests / "README.md").read_text(encoding="utf-8"))
    assert [name for name in named if not (tests / name).exists()] == []
    files = [path.relative_to(tests).as_posix() for path in python_files(tests) if path.name.startswith("test_")]
    folders = tuple(name for name in named if name.endswith("/"))
    missing = [file for file in files if file not in named and not file.startswith(folders)]
    assert missing == [], "say in tests/README.md which promise it holds"
