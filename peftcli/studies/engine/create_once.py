"""Create a file that only one of several processes gets to create, on whatever machines they are."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from peftcli.atomic import PARTIAL
from peftcli.write_errors import writing


def create_once(path: Path, text: str) -> bool:
    """Create a file with its text; return False, and leave the file, if there is one.

    The text is written beside it and linked, so that nobody reads half of it; a link is made by one process only, on
    network file systems, too. Where there are no links (exFAT), the file is created exclusively and then written.

    Raises:
        CannotWrite: the system refuses.
    """
    beside = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    with writing(path):
        try:
            beside.write_text(text, encoding="utf-8")
            try:
                os.link(beside, path)
            except FileExistsError:
                return False
            except OSError:
                return _exclusively(path, text)
            return True
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def _exclusively(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
