"""Turn what libraries raise when a file cannot be written into one message: what, where, why, and what to do.

Each library has its own errors: Python and pyarrow raise `OSError`, safetensors and tokenizers put the number of the
operating system's error into their text, numpy and torch raise a sentence without a number.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftcli.errors import OutOfResources, PeftCliError, Problem

_NUMBER = re.compile(r"\(os error (\d+)\)|\[?\berrno (\d+)\]?", re.IGNORECASE)
"""The operating system's number in a text of a Rust library, of pyarrow, or in a list of `shutil.Error`."""

_CUT_OFF = re.compile(
    r"\d+ requested and \d+ written"  # numpy.ndarray.tofile
    r"|PytorchStreamWriter failed|unexpected pos \d+ vs|iostream error"  # torch.save
    r"|file write failed|failed to write"
)
"""Sentences of libraries that lose the number: the system took a part of what was written."""

_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Numbers that reading never gives."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this user on the disk is used up",
    errno.EFBIG: "the file is larger than this process may write, or than the file system takes",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "the disk or its connection failed (input/output error)",
    errno.ENAMETOOLONG: "the name is longer than the file system takes",
    errno.EILSEQ: "the file system takes no such name",
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "the machine has too many open files",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EISDIR: "it is a directory",
    errno.EEXIST: "something of this name is in the way",
    errno.ENOTEMPTY: "something of this name is in the way",
    errno.ENOENT: "the directory is missing, or was removed meanwhile",
    errno.ENOMEM: "the machine has no memory left",
}

_REMEDIES = {
    errno.ENOSPC: "free some space there, or {instead}",
    errno.EDQUOT: "remove files of yours there, or {instead}",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), or {instead}",
    errno.EIO: "look at the disk or the network mount, or {instead}",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "close other programs, or raise the system's limit on open files",
    errno.ENOMEM: "close other programs, or raise the limit on memory",
}

_WITH_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, 0}
"""Where it helps to know how much is free."""


OTHER_RUN = "choose another output_dir"
OTHER_OUTPUT = "choose another --output"
"""What else the user can do, for `writing(path, instead)`."""


class CannotWrite(OutOfResources):
    """A file or directory could not be written; what was there before is there still."""


@contextmanager
def writing(path: Path, instead: str = "write to another place", *, verb: str = "written") -> Iterator[None]:
    """Translate the errors of every library that writes `path`, or files inside it, within the context.

    Errors that have their message, and errors about other files that are only read, pass through.

    Args:
        path: the file or directory as the user knows it, not the one beside it that is renamed later.
        instead: what else the user can do, as an order: `choose another --output`.
        verb: what cannot be done, for the message.

    Raises:
        CannotWrite: names the path, the reason, and what to do.
    """
    try:
        yield
    except PeftCliError:
        raise
    except Exception as error:
        number = _number(error, path)
        if number is None:
            raise
        raise CannotWrite(_problem(path, number, error, instead, verb)) from error


def _number(error: BaseException, path: Path) -> int | None:
    """Return the operating system's number of an error of writing, 0 if it is lost, None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        ours = error.filename is None or error.errno in _OF_WRITING or _is_at(error, path)
        return error.errno if ours else None
    if found := _NUMBER.search(str(error)):
        return int(found.group(1) or found.group(2))
    if isinstance(error, shutil.Error) or _CUT_OFF.search(str(error)):
        return 0
    return errno.EILSEQ if isinstance(error, ValueError) and not _is_possible(path) else None


def _is_possible(path: Path) -> bool:
    """Return whether a path can be a name at all: no NUL, no half of a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _is_at(error: OSError, path: Path) -> bool:
    """Return whether an error names `path`, something inside it, a hidden name beside it, or a directory above it."""
    place, parent = os.path.abspath(path), os.path.abspath(path.parent)
    within, hidden = os.path.join(place, ""), os.path.join(parent, ".")
    names = [os.path.abspath(os.fsdecode(name)) for name in (error.filename, error.filename2) if _is_name(name)]
    return any(name == place or name.startswith((within, hidden)) or parent.startswith(name) for name in names)


def _is_name(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _problem(path: Path, number: int, error: BaseException, instead: str, verb: str) -> Problem:
    words = "only a part of it was taken: the disk is full, or a limit on the size of files is reached"
    if number:
        words = _REASONS.get(number) or os.strerror(number)
    elif isinstance(error, shutil.Error):
        words = str(error)
    directory, free = _space(path)
    if number in _WITH_SPACE and free is not None:
        words += f" ({free} free in {directory})"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        words += f" ({directory})"
    remedy = _REMEDIES.get(number, _REMEDIES[errno.ENOSPC] if number == 0 else "{instead}")
    return Problem(f"{path} cannot be {verb}: {words}", suggestion=remedy.format(instead=instead))


def _space(path: Path) -> tuple[Path, str | None]:
    """Return the nearest directory that exists, and how much is free there; None where that cannot be asked."""
    directory = path.parent
    try:
        while not directory.is_dir() and directory != directory.parent:
            directory = directory.parent
        return directory.absolute(), f"{shutil.disk_usage(directory).free / 1e6:,.1f} MB"
    except (OSError, ValueError):  # the current directory was removed, or the name is none
        return directory, None
