"""Nothing is kept that nothing uses: names that only tests know are dead, too.

vulture looks at every name, ruff's ARG001 at the parameters of functions; their settings are in pyproject.toml.
Here are two checks that neither makes: a public name counts by its module, so that a namesake elsewhere does not hide
that nobody imports it; and a parameter of a method counts where no other class gives the method its signature.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USERS = ("peftcli", "docs", "benchmarks")
"""Folders whose code makes a name used; tests are not among them."""

FOUND_BY_NAME = {
    ("peftcli.cli.*", "register"): "cli.app imports each command's module by its name and calls this",
    ("peftcli.methods.*", "METHOD"): "protocol.registry imports each method's module by its name and reads this",
}
"""(module, name) that is used without being imported -> by whom."""


def modules() -> dict[str, ast.Module]:
    """Return dotted name -> syntax tree of each module of the package."""
    trees = {}
    for path in sorted((ROOT / "peftcli").rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[dotted] = ast.parse(path.read_text(encoding="utf-8"))
    assert len(trees) > 100
    return trees


MODULES = modules()


def public_names(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Yield (name, statement) of each public name that a module defines at its top level."""
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                yield node.name, node
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield target.id, node


def used_names(tree: ast.AST) -> set[tuple[str, str]]:
    """Return (module, name) of what a file imports from the package, or reads off a module that it imports."""
    used: set[tuple[str, str]] = set()
    alias_of: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                used.add((node.module, alias.name))
                alias_of[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in alias_of:
            used.add((alias_of[node.value.id], node.attr))
    return used


def used_at_home(tree: ast.Module, name: str, definition: ast.stmt) -> bool:
    """Whether a module reads its own name anywhere but in the definition."""
    for node in tree.body:
        if node is not definition and any(
            isinstance(inner, ast.Name) and inner.id == name and isinstance(inner.ctx, ast.Load)
            for inner in ast.walk(node)
        ):
            return True
    return False


def code_in_pages() -> str:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in pages)


def test_every_public_name_is_used() -> None:
    used: set[tuple[str, str]] = set()
    for folder in USERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            used |= used_names(ast.parse(path.read_text(encoding="utf-8")))
    for module, names in re.findall(r"^from (peftcli[\w.]*) import ([\w, ]+)", code_in_pages(), re.MULTILINE):
        used |= {(module, name.strip()) for name in names.split(",")}
    exceptions: Counter[tuple[str, str]] = Counter()
    dead = []
    for module, tree in MODULES.items():
        for name, definition in public_names(tree):
            if (module, name) in used or used_at_home(tree, name, definition):
                continue
            known = [(glob, known) for glob, known in FOUND_BY_NAME if known == name and fnmatch(module, glob)]
            exceptions.update(known)
            if not known:
                dead.append(f"{module}.{name}")
    assert dead == [], "\n".join(dead)
    assert set(exceptions) == set(FOUND_BY_NAME), "exceptions that are no longer needed"


def test_every_parameter_of_a_method_is_read() -> None:
    """Of methods that only one class has, and that class has no base: no other class asks for the parameter."""
    classes = [(module, node) for module, tree in MODULES.items() for node in ast.walk(tree)
               if isinstance(node, ast.ClassDef)]  # fmt: skip
    holders = Counter(method.name for _, node in classes for method in node.body if isinstance(method, ast.FunctionDef))
    unread = []
    for module, node in classes:
        for method in node.body:
            alone = isinstance(method, ast.FunctionDef) and holders[method.name] == 1 and not node.bases
            if isinstance(method, ast.FunctionDef) and alone and not method.name.startswith("__"):
                read = {inner.id for inner in ast.walk(method) if isinstance(inner, ast.Name)}
                arguments = [*method.args.args, *method.args.kwonlyargs]
                unread += [
                    f"{module}.{node.name}.{method.name}: {argument.arg}"
                    for argument in arguments
                    if argument.arg not in read and argument.arg not in ("self", "cls") and argument.arg[0] != "_"
                ]
    assert unread == [], "\n".join(unread)


def test_vulture_finds_nothing() -> None:
    found = subprocess.run([sys.executable, "-m", "vulture"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == "", "remove what is unused, or say in pyproject.toml (ignore_names) who uses it"
    assert found.returncode == 0, found.stderr
