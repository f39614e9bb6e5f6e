"""What a path names that is neither a file nor a directory: a pipe, a device, a socket, a link that leads nowhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from peftcli.errors import Problem, UserError

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def kind_of_path(path: Path) -> str | None:
    """Return what a path names in words, such as `a pipe`; None for a file or a directory.

    Raises:
        OSError: this user may not look at it, or there is nothing.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            raise
        return f"a link to {os.readlink(path)}, which does not exist"
    return _KINDS.get(stat.S_IFMT(mode))


def refuse_no_file(path: Path, key: str) -> None:
    """Refuse to read rows from what is neither a file nor a directory: they are read several times, to the end.

    Args:
        key: the recipe's key of the path, for the message.

    Raises:
        UserError: names what it is.
    """
    try:
        kind = kind_of_path(path)
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror or error}"
        raise UserError(Problem(text, key=key, suggestion="check the path and the rights of this user")) from error
    if kind is not None:
        remedy = "name a file or a directory; what a program writes goes into a file first: PROGRAM > rows.jsonl"
        if kind.startswith("a link"):
            remedy = "put the file back, or remove the link"
        raise UserError(Problem(f"{path} is {kind}, not a file", key=key, suggestion=remedy))
