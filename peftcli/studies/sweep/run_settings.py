"""Where and for how long a sweep runs: nothing here changes what its trials are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peftcli.studies.engine.watching import Watcher


@dataclass(frozen=True)
class RunSettings:
    """Settings of this worker.

    Args:
        directory: of the study.
        storage: URL of a database, None for the journal in the directory.
        jobs: trials at once in this worker.
        budget: seconds for everything, over all starts; None without.
        command: as typed.
    """

    directory: Path
    storage: str | None = None
    jobs: int = 1
    budget: float | None = None
    command: str = ""


class SweepWatcher(Watcher, Protocol):
    """Who shows a sweep at work."""

    def phase(self, title: str, trials: int, seconds: float | None) -> None:
        """Show that so many trials begin; `seconds` until the last phase ends, None if that is not known yet."""
        ...
