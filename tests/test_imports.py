"""Imports point one way: between rooms by their floors, and between files without circles."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "peftcli"

FLOORS = (
    ("recipe",),
    ("layers", "distributed"),
    ("tasks",),
    ("models",),
    ("protocol",),
    ("attachments",),
    ("methods", "data"),
    ("deliverables",),
    ("adapters",),
    ("record",),
    ("assembly",),
    ("inference",),
    ("training", "merging"),
    ("serving",),
    ("analysis",),
    ("studies",),
    ("starting",),
    ("console",),
    ("cli",),
)
"""From the ground up: a room imports from its own floor and lower ones; rooms of one floor form no circle."""
LEVEL = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 20
    return found


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def package_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "peftcli" and len(parts) > 1 and parts[1] in LEVEL else None


def edges() -> dict[tuple[str, str], set[str]]:
    """Return (importing package, imported package) -> files."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in modules():
        relative = path.relative_to(PACKAGE)
        source = relative.parts[0] if len(relative.parts) > 1 else None
        for name in imported(path):
            target = package_of(name)
            if source is not None and target is not None and source != target:
                found.setdefault((source, target), set()).add(str(relative))
    return found


def test_every_package_has_a_level() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(LEVEL)


def test_imports_point_one_way() -> None:
    upward = {edge: sorted(files) for edge, files in edges().items() if LEVEL[edge[0]] < LEVEL[edge[1]]}
    assert upward == {}


def test_packages_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for source, target in edges():
        graph.setdefault(source, set()).add(target)

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in graph.get(stack.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return seen

    assert [room for room in LEVEL if room in reach(room)] == []


def file_graph() -> dict[str, set[str]]:
    """Return module -> modules that it imports, with `peftcli.` left out.

    Imports inside functions and under TYPE_CHECKING count. An import also runs the `__init__` of each package on its
    way, which counts except for packages that the importing module lies in: those are being imported already.
    """
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in modules()}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for dotted in imported(path):
            parts = dotted.split(".")[1:] if dotted.split(".")[0] == "peftcli" else []
            for end in range(1, len(parts) + 1):
                target = ".".join(parts[:end])
                package = f"{target}.__init__"
                if target in files:
                    graph[name].add(target)
                elif package in files and (end == len(parts) or not name.startswith(f"{target}.")):
                    graph[name].add(package)
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the largest sets of two nodes or more that all reach one another (Kosaraju's algorithm)."""

    def walk(start: str, edges: dict[str, set[str]], seen: set[str], done: list[str]) -> None:
        seen.add(start)
        for target in edges[start]:
            if target not in seen:
                walk(target, edges, seen, done)
        done.append(start)

    order: list[str] = []
    seen: set[str] = set()
    for node in graph:
        if node not in seen:
            walk(node, graph, seen, order)
    back: dict[str, set[str]] = {node: set() for node in graph}
    for source, targets in graph.items():
        for target in targets:
            back[target].add(source)
    found: set[frozenset[str]] = set()
    seen = set()
    for node in reversed(order):
        if node not in seen:
            members: list[str] = []
            walk(node, back, seen, members)
            found.add(frozenset(members))
    return {members for members in found if len(members) > 1}


def test_files_form_no_circle() -> None:
    graph = file_graph()
    assert sum(len(targets) for targets in graph.values()) > 500
    assert circles(graph) == set()


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles(graph) == {frozenset("abc"), frozenset("ef")}


def test_a_file_beside_the_rooms_lifts_no_room() -> None:
    """A room that imports such a file stands at least as high as what that file imports."""
    graph = file_graph()
    beside = {name for name in graph if "." not in name and name not in LEVEL and name not in ("__init__", "__main__")}

    def floor(name: str) -> int:
        room = name.split(".")[0]
        return LEVEL.get(room, -1) if name not in beside else max(map(floor, graph[name]), default=-1)

    upward = {
        (name, target)
        for name, targets in graph.items()
        for target in targets & beside
        if name.split(".")[0] in LEVEL and floor(name) < floor(target)
    }
    assert upward == set()


def test_recipe_imports_only_pydantic_and_yaml() -> None:
    allowed = set(sys.stdlib_module_names) | {"pydantic", "pydantic_core", "yaml"}
    ours = ("peftcli.recipe", "peftcli.errors", "peftcli.suggestions", "peftcli.shown_text")
    wrong = {
        (path.name, name)
        for path in (PACKAGE / "recipe").rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] not in allowed and not name.startswith(ours)
    }
    assert wrong == set()


def test_hf_peft_is_never_imported() -> None:
    assert [str(path) for path in modules() if any(name.split(".")[0] == "peft" for name in imported(path))] == []
