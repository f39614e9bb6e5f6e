"""Code for devices that are not here: each place is taken by a test, or docs/devices.md says that it never ran."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "devices.md"
PACKAGE = ROOT / "peftcli"
KINDS = {"cuda", "mps"}


def places(path: Path) -> Iterator[str]:
    """Yield the functions of a file that ask for a kind of device, or call its library."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        inner = {id(node) for child in ast.walk(function) if child is not function and isinstance(child, ast.FunctionDef)
                 for node in ast.walk(child)}  # fmt: skip
        if any(concerns_a_device(node) for node in ast.walk(function) if id(node) not in inner):
            yield function.name


def concerns_a_device(node: ast.AST) -> bool:
    """Tell whether a node compares with `cuda` or `mps`, or reaches into torch's code for them."""
    if isinstance(node, ast.Compare):
        constants = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        return any(isinstance(part, ast.Constant) and part.value in KINDS for part in constants)
    if isinstance(node, ast.Attribute):
        return node.attr in {"is_cuda", "is_mps"} or bool(re.match(r"torch\.(backends\.)?(cuda|mps)$", ast.unparse(node)))
    return False


def found() -> set[str]:
    """Return every place as `file: function`."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {f"{path.relative_to(ROOT).as_posix()}: {name}" for path in files for name in places(path)}

if __name__ == "__main__":
    print("\n".join(sorted(found())))
