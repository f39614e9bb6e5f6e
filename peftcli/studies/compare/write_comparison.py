"""The files of a comparison: comparison.json, and the reports that are rendered from it."""

from __future__ import annotations

import json
from pathlib import Path

from peftcli.atomic import write_text
from peftcli.record.step_lines import finite
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.written_report import REPORT, write_report

INSTEAD = "choose another --output"


def write_comparison(comparison: Comparison, directory: Path) -> list[Path]:
    """Write the record, whole or not at all, and everything that is rendered from it; return the files.

    Raises:
        CannotWrite: the system refuses.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "comparison.json"
    write_text(record, json.dumps(finite(comparison.as_dict()), indent=2, allow_nan=False) + "\n", instead=INSTEAD)
    return [record, *write_report(comparison, directory / REPORT, instead=INSTEAD)]
