"""Scores of held-out rows in the directory of a comparison: those of its trials, and those that it computes itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from peftcli.atomic import write_text
from peftcli.errors import Problem, UserError
from peftcli.inference.row_scores import RowScores, score_rows


def kept_scores(file: Path, compute: Callable[[], RowScores]) -> RowScores:
    """Return the scores in a file; compute and write them where it is missing, damaged, or of another version."""
    try:
        return RowScores.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, UserError):
        file.unlink(missing_ok=True)
    scores = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(scores.as_dict()) + "\n")
    return scores


def trial_scores(study: Path, name: str) -> RowScores:
    """Return the scores of a trial's held-out rows, which its process wrote; see `kept_scores`.

    Raises:
        UserError: they are missing or damaged, and the trial's run cannot be scored here.
    """
    file = study / "scores" / f"{name}.json"
    try:
        return kept_scores(file, lambda: score_rows(study / "trials" / name))
    except UserError as error:
        remedy = f"remove {study / 'results' / f'{name}.json'}: the same command then trains and scores it again"
        reason = f"the scores of this trial's held-out rows are missing or damaged: {error.problems[0].message}"
        raise UserError(Problem(reason, file=str(file), suggestion=remedy)) from error
