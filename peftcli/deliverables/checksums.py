"""Hashes of what was written, kept beside it: a file or a value that changed since is noticed when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.typed_record import read_record

DIGESTS = "digests"
"""The key, in a JSON file beside the others, of file names (and keys of that file) to hashes."""
CHECKSUMS = "checksums.json"
"""The file with the hashes of a complete model's files."""
_KEPT = 32
_BLOCK = 2**20


def file_digest(path: Path) -> str:
    """Return the hash of a file's bytes, `sha256:...`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()[:_KEPT]}"


def value_digest(value: Any) -> str:
    """Return the hash of plain data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:_KEPT]}"


def write_checksums(directory: Path) -> None:
    """Write the hashes of all files of a model's directory beside them."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    record = {DIGESTS: {path.name: file_digest(path) for path in files}}
    (directory / CHECKSUMS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_checksums(directory: Path) -> None:
    """Refuse a complete model of which a file is not what was written; one without hashes is taken as it is.

    Raises:
        UserError: names each file, or the hashes cannot be read.
    """
    record = directory / CHECKSUMS
    if record.is_file():
        digests = read_record(_Checksums, record, suggestion=f"remove {CHECKSUMS} to use the model as it is").digests
        names = [name for name in digests if (directory / name).is_file() or name.endswith((".safetensors", ".json"))]
        refuse_changed_files(directory, names, digests, record)


@dataclass(frozen=True)
class _Checksums:
    digests: dict[str, str]


def refuse_changed_files(directory: Path, names: Iterable[str], digests: Mapping[str, str], record: Path) -> None:
    """Refuse files that are not those that were written; of a file without a hash nothing is known.

    Args:
        directory: holds them.
        names: of the files that are about to be used.
        digests: from the record.
        record: the file that holds the hashes.

    Raises:
        UserError: names each of them, and what to do if the change was meant.
    """
    problems = []
    for name in names:
        known = digests.get(name)
        if known is None:
            continue
        if not (directory / name).is_file():
            problems.append(Problem(f"{directory / name} is missing", suggestion="copy it back, or train again"))
        elif file_digest(directory / name) != known:
            problems.append(changed(f"{directory / name} is not the file that was written", name, record))
    if problems:
        raise UserError(problems)


def changed(what: str, name: str, record: Path) -> Problem:
    """Return the problem of a value or file `name` whose hash is another one."""
    remedy = f"copy it again, or train again; if you changed it on purpose, remove {name!r} from {DIGESTS} in {record}"
    return Problem(f"{what}: it was damaged, or changed since", suggestion=remedy)
