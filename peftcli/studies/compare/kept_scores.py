"""Scores of held-out rows that a comparison computes itself, kept in its directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from peftcli.atomic import write_text
from peftcli.errors import UserError
from peftcli.inference.row_scores import RowScores


def kept_scores(file: Path, compute: Callable[[], RowScores]) -> RowScores:
    """Return the scores in a file; compute and write them where there is none, or one of another version."""
    if file.exists():
        try:
            return RowScores.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, UserError):
            file.unlink(missing_ok=True)
    scores = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(scores.as_dict()) + "\n")
    return scores
