"""The libraries whose adapters can be read and written, by the name that `peft export --to` takes.

A new library gets one line here; exporting, importing, loading and the commands' help go through the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.adapters.adapterhub.adapterhub_library import AdapterHub
from peftcli.adapters.hf.hf_library import HfPeft
from peftcli.adapters.library import Library
from peftcli.errors import UserError
from peftcli.suggestions import did_you_mean, nearest

_LIBRARIES: tuple[Library, ...] = (
    HfPeft(),
    AdapterHub(),
)

LIBRARIES: Mapping[str, Library] = {library.name: library for library in _LIBRARIES}


def library_named(name: str) -> Library:
    """Return a library.

    Raises:
        UserError: there is none of that name.
    """
    if name not in LIBRARIES:
        choice = did_you_mean(nearest(name, LIBRARIES), f"choose one of: {', '.join(LIBRARIES)}")
        raise UserError(f"--to {name}: there is no such library", suggestion=choice)
    return LIBRARIES[name]


def library_of(directory: Path) -> Library:
    """Return the library that saved the adapter in a directory.

    Raises:
        UserError: it is of no known library.
    """
    for library in LIBRARIES.values():
        if library.recognises(directory):
            return library
    read_json(directory / CONFIG)  # says what is missing or damaged, where that is why
    titles = ", ".join(library.title for library in LIBRARIES.values())
    raise UserError(f"{directory / CONFIG} is not from a known library", suggestion=f"known are: {titles}")
