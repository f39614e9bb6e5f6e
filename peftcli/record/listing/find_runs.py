"""Find the runs and the studies below a directory."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from peftcli.errors import UserError
from peftcli.recipe.run_paths import STORED
from peftcli.record.listing.run_entry import RunEntry, run_entry
from peftcli.record.own_entries import OWN_ENTRIES, TRAINED

STUDY = "study.json"
"""The file that makes a directory a study's; its trials are runs in `TRIALS`."""
TRIALS = "trials"


@dataclass(frozen=True)
class StudyEntry:
    """A study of a list: its trials are not runs of their own there.

    Args:
        trials: how many have begun.
        ended: how many of them have a result.
        changed: when a trial ended last, or the study began, in seconds since 1970.
    """

    path: str
    trials: int
    ended: int
    changed: float


def find_runs(directory: Path) -> tuple[list[RunEntry], list[StudyEntry]]:
    """Return the runs and the studies below a directory, the newest first.

    A study that is named itself is looked into.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        remedy = "name the directory below which your runs are: peft runs DIR"
        raise UserError(f"the directory {directory} {what}", suggestion=remedy)
    runs: list[RunEntry] = []
    studies: list[StudyEntry] = []
    waiting = [directory]
    while waiting:
        place = waiting.pop()
        try:
            entries = {entry.name: entry for entry in os.scandir(place)}
        except OSError as error:
            runs.append(RunEntry(str(place), "damaged", reason=f"cannot be read: {error.strerror or error}"))
            continue
        if _is_run(entries.keys()):
            runs.append(run_entry(place))
        elif STUDY in entries and place != directory:
            studies.append(_study(place))
        else:
            below = [place / name for name, entry in entries.items() if not name.startswith(".") and _opens(entry)]
            waiting += below
    runs.sort(key=lambda run: (-run.changed, run.path))
    return runs, sorted(studies, key=lambda study: (-study.changed, study.path))


def _is_run(names: Set[str]) -> bool:
    """Tell a run's directory, also one that lost a file, from one that holds other things of the same names."""
    own = names & set(OWN_ENTRIES)
    if STORED in own:
        return len(own) > 1
    trained = own & set(TRAINED)
    return len(trained) > 1 and bool({"summary.json", "metrics.jsonl", "checkpoints"} & trained)


def _opens(entry: os.DirEntry[str]) -> bool:
    """Whether to look below: not through links, which may lead in circles."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _study(path: Path) -> StudyEntry:
    trials = _names(path / TRIALS)
    results = [path / "results" / name for name in _names(path / "results") if name.endswith(".json")]
    times = [_changed(file) for file in [path / STUDY, *results]]
    return StudyEntry(str(path), len(trials), len(results), max(times))


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
