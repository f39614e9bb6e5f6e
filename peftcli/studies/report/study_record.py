"""The record of a study, read back from its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.sweep.sweep_record import Sweep
from peftcli.typed_record import read_object, record_of

RECORDS: dict[str, type[Comparison] | type[Sweep]] = {"comparison.json": Comparison, "sweep.json": Sweep}
"""Name of the file -> what it holds."""

_VERSION = 1
_GAPS = ("scores", "losses", "interval")
"""Ends of the names of lists of numbers in which null stands for one that is not finite: JSON has no other word."""


def record_file(directory: Path) -> Path | None:
    """Return the file that holds the record of the study in a directory; None if none is there."""
    return next((directory / name for name in RECORDS if (directory / name).is_file()), None)


def read_study(file: Path) -> Comparison | Sweep:
    """Return what a comparison or a sweep found.

    Args:
        file: named as in `RECORDS`.

    Raises:
        UserError: it is damaged, or of another version; names the key.
    """
    remedy = "run the command of the study again: what is finished is not trained again"
    data = read_object(file, suggestion=remedy)
    if data.get("version", _VERSION) != _VERSION:
        reason = f"is of version {data['version']}; this peftcli reads version {_VERSION}"
        raise UserError(Problem(reason, file=str(file), key="version", suggestion=remedy))
    return record_of(RECORDS[file.name], _with_gaps(data), file, suggestion=remedy)


def _with_gaps(value: Any, key: str = "") -> Any:
    """Return plain data in which a null among numbers is NaN."""
    if isinstance(value, dict):
        return {name: _with_gaps(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [float("nan") if item is None and key.endswith(_GAPS) else _with_gaps(item) for item in value]
    return value
