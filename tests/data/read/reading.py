"""What the tests of reading share: the rows of a path, as a recipe's source gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.sources import resolve_source
from peftcli.recipe.schema import DataSource


def rows(path: Path, **source: Any) -> list[Record | BadRow]:
    return list(resolve_source(DataSource(path=str(path), **source)).rows())


def values(path: Path, **source: Any) -> list[tuple[int, dict[str, Any]]]:
    return [(row.row, row.values) for row in rows(path, **source) if isinstance(row, Record)]
