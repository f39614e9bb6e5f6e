"""metrics.jsonl: one object a line, appended while a run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.atomic import append_text, write_text
from peftcli.write_errors import OTHER_RUN


class MetricsFile:
    """The metrics of one run; the file need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line."""
        append_text(self.path, json.dumps(finite(line), allow_nan=False) + "\n", instead=OTHER_RUN)

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines; a last one that a crash cut off is left out."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines

    def cut(self, step: int) -> None:
        """Drop what was written after `step`: a resumed run writes it again."""
        kept = [line for line in self.lines() if line.get("step", 0) <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept), instead=OTHER_RUN)


def finite(value: Any) -> Any:
    """Return plain data in which NaN and infinities, which JSON lacks, are null."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
