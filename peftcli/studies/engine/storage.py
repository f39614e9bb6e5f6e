"""Where the states of a study's trials are kept: Optuna's storages, a journal file in the directory by default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import UserError
from peftcli.shown_text import first_line
from peftcli.studies.engine.study_files import StudyFiles

POSTGRESQL = 'python -m pip install "peftcli[postgresql]"'

_PASSWORD = re.compile(r"(?<=[?&])[^&=]*pass[^&=]*=[^&]*&?", re.IGNORECASE)
"""A parameter of a URL that holds a password: password, sslpassword, passwd."""


@dataclass(frozen=True)
class OpenedStorage:
    """A storage that answers.

    Args:
        storage: Optuna's.
        name: of the study in it.
        asked: what was asked.
        directory: of the study, for a person who looks into the storage.
    """

    storage: Any
    name: str
    asked: Mapping[str, Any]
    directory: Path

    def study(self, *, greater_is_better: bool, sampler: Any = None, pruner: Any = None) -> Any:
        """Return the `optuna.Study`, made if it is not there."""
        import optuna

        with storage_answers(), quiet_optuna():
            study = optuna.create_study(
                storage=self.storage,
                study_name=self.name,
                direction="maximize" if greater_is_better else "minimize",
                load_if_exists=True,
                sampler=sampler,
                pruner=pruner,
            )
            if study.user_attrs.get("directory") != str(self.directory):
                study.set_user_attr("directory", str(self.directory))
        return study


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's log lines off the terminal inside: a study tells its watcher what happens."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def storage_answers() -> Iterator[None]:
    """Say that a storage went away while a study used it.

    Raises:
        UserError: in place of the database's error, which Optuna wraps in one of its own.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        remedy = "when it is back, the same command continues"
        text = f"the storage of the study does not answer any more: {_reason(error)}"
        raise UserError(text, suggestion=remedy) from error


def open_storage(files: StudyFiles, asked: Mapping[str, Any], url: str | None) -> OpenedStorage:
    """Open the storage of a study, and begin the study's directory if that works.

    Args:
        url: such as `postgresql://user@host/database`; None is `journal.log` in the directory.

    Raises:
        UserError: the URL is none, its driver is missing, or the server cannot be reached; nothing was written then.
    """
    database = _database(url) if url is not None else None
    name = f"{files.directory.resolve().name}-{files.begin(asked, None if url is None else without_password(url))[:12]}"
    storage = database if database is not None else _journal(files.journal)
    return OpenedStorage(storage, name, asked, files.directory.resolve())


def _journal(file: Path) -> Any:
    """Return the storage of a journal file.

    Its lock is a file that is created exclusively: that works on network file systems (NFS 3 and later) and on Windows;
    Optuna's other lock, a symbolic link, cannot be looked at where a machine mounts the directory at another path.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = file.resolve()
    lock = JournalFileOpenLock(str(file))
    if not _ends_in_a_line(file):
        lock.acquire()  # whoever writes holds it: what is still half a line then, nobody will end
        try:
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


def _ends_in_a_line(file: Path) -> bool:
    """Return whether a journal is empty or ends with a whole line: a full disk or a power cut can leave half of one."""
    if not file.exists() or not file.stat().st_size:
        return True
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) == b"\n"


def _database(url: str) -> Any:
    """Return the storage behind a URL.

    Raises:
        UserError: it cannot be opened.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    url = _with_driver(url)
    try:
        return get_storage(RDBStorage(url))
    except ImportError as error:
        remedy = POSTGRESQL if url.startswith("postgresql") else "install the driver that SQLAlchemy names for this URL"
        raise UserError(
            f"--storage {without_password(url)}: its database driver is not installed", suggestion=remedy
        ) from error
    except ArgumentError as error:
        remedy = "write a URL such as postgresql://user:password@host/database, or leave it out: a journal file is used"
        raise UserError(f"--storage {without_password(url)} is not the URL of a database", suggestion=remedy) from error
    except (StorageInternalError, SQLAlchemyError, OSError, RuntimeError, ValueError) as error:
        remedy = (
            "check that the server runs, and host, port, user and password; without --storage a journal file is used"
        )
        raise UserError(
            f"--storage {without_password(url)} cannot be used: {_reason(error)}", suggestion=remedy
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of what a database's driver said."""
    return first_line(error.__cause__ or error)


def _with_driver(url: str) -> str:
    """Return a URL with the PostgreSQL driver that this project installs, unless it names one itself."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def without_password(url: str) -> str:
    """Return the URL of a database as it can be shown: a password stands after the user, or among the parameters."""
    head, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = _PASSWORD.sub("", rest).rstrip("?&")
    before, mark, after = rest.partition("?")
    if "@" not in before and "@" in after:  # the question mark is one of the password
        before, mark, after = rest, "", ""
    user, at, place = before.rpartition("@")
    return f"{head}{separator}{user.partition(':')[0]}{at}{place}{mark}{after}"
