"""Weight files asked of the disk early: it reads them while libraries are imported. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

from peftcli.errors import UserError
from peftcli.models.load.model_files import find_source
from peftcli.models.weights.weight_index import weight_files

SHARE = 0.5
"""Of the machine's memory that the files may fill: of more, the first would give way before they are used."""


def read_ahead(name: str) -> Thread | None:
    """Ask the system to read a local model's weight files into its cache, without waiting for that.

    Nothing is said of files that are wrong or missing: loading does that. Files that are in the cache are not read.

    Args:
        name: as the recipe names the model.

    Returns:
        What asks, a thread; None where there is nothing to ask for, or no way to ask.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    try:
        source = find_source(name)
        files = [] if source.path is None else [source.path] if source.path.is_file() else weight_files(source.path)
        size = sum(file.stat().st_size for file in files)
    except (UserError, OSError):
        return None
    if not 0 < size <= SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return None
    asking = Thread(target=_ask, args=(files,), daemon=True, name="read ahead")
    asking.start()
    return asking


def _ask(files: Sequence[Path]) -> None:
    for file in files:
        with suppress(OSError), file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
