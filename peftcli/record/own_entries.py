"""The names in a run's directory: what may be removed, what must not be lost, what must not be a link."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from peftcli.atomic import PARTIAL, put_back, remove_partial
from peftcli.errors import UserError
from peftcli.record.listing.failure import FAILURE
from peftcli.record.run_lock import HOLDER_FILE, LOCK_FILE

ARTIFACTS = ("adapter", "model")
"""What a finished run leaves, one or the other."""

OWN_ENTRIES = (
    "summary.json",
    *ARTIFACTS,
    "checkpoints",
    "reference",
    "metrics.jsonl",
    "plots",
    "report.html",
    "samples.jsonl",
    "skipped_rows.jsonl",
    "logs",
    "profile",
    FAILURE,
    LOCK_FILE,
    HOLDER_FILE,
    "recipe.yaml",
)
"""What a run writes; `--overwrite` removes these in this order and nothing else.

The summary goes first and the recipe last: after a crash in between, the rest is an unfinished run.
"""

TRAINED = ("summary.json", *ARTIFACTS, "checkpoints", "metrics.jsonl")
"""What nobody wants to lose."""

_WRITTEN_IN_PLACE = (
    *("metrics.jsonl", "samples.jsonl", "plots", "logs", LOCK_FILE, HOLDER_FILE),
    *("profile", "profile/trace.json", "profile/table.txt"),
)
"""What is not replaced as a whole: where one is a link, what it points at would be written to."""


def clear(run: Path, keep: Sequence[str] = ()) -> None:
    """Remove what a run wrote into its directory, but not the lock, and nothing of somebody else's.

    Args:
        keep: names that stay, too.
    """
    for name in OWN_ENTRIES:
        entry = run / name
        if name in (LOCK_FILE, HOLDER_FILE, *keep):  # the process that clears holds the lock
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    remove_partial(run)


def refuse_links(run: Path) -> None:
    """Refuse to write through links that somebody put into a run's directory.

    Raises:
        UserError: what is written in place is a link.
    """
    links = [name for name in _WRITTEN_IN_PLACE if (run / name).is_symlink()]
    if links:
        problem = f"output_dir {run}: {links[0]} is a link, and what it points at is not written to"
        raise UserError(problem, suggestion="remove the link, or choose another output_dir")


def partial_files(run: Path) -> list[Path]:
    """Return what a killed run was writing."""
    return [entry for folder in _written_to(run) for entry in folder.glob(f"{PARTIAL}*")]


def remove_partial_files(run: Path) -> None:
    """Remove what a killed run was writing; what it was replacing is there again."""
    for folder in _written_to(run):
        put_back(folder)
        remove_partial(folder)


def _written_to(run: Path) -> tuple[Path, ...]:
    return run, run / "checkpoints", run / "plots"
