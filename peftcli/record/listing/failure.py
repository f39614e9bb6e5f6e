"""What ended a run that failed: a file in its directory until it goes on, for whoever lists runs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from peftcli.atomic import write_text
from peftcli.errors import PeftCliError, UserError
from peftcli.shown_text import first_line
from peftcli.typed_record import read_object

FAILURE = "failure.json"
_LONGEST = 1000  # characters of a reason: a traceback is for the terminal


def write_failure(run: Path, error: Exception) -> None:
    """Write why a run ended, if that can be written: a full disk may be why."""
    with suppress(OSError, PeftCliError):
        write_text(run / FAILURE, json.dumps({"reason": first_line(error)[:_LONGEST]}) + "\n")


def forget_failure(run: Path) -> None:
    """Remove what an earlier attempt wrote."""
    with suppress(OSError):
        (run / FAILURE).unlink(missing_ok=True)


def failure(run: Path) -> str | None:
    """Return why a run failed; None if it did not."""
    if not (run / FAILURE).exists():
        return None
    try:
        reason = read_object(run / FAILURE).get("reason")
    except UserError:
        reason = None
    return reason if isinstance(reason, str) and reason else "it does not say why"
