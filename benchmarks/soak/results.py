"""What a command gave: a digest of each file of its outputs and of its standard output, without times and places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.soak.child import CACHE, TEMPORARY, Ended

VOLATILE = frozenset({
    "train_runtime", "tokens_per_second", "peak_memory_bytes", "eval_runtime", "seconds", "elapsed", "time", "runtime",
    "cache", "cache_directory", "notes",
})  # fmt: skip
"""Keys of JSON outputs that differ between two equal runs."""
PASSING = ("checkpoints", "logs", ".lock", ".lock_holder")
"""Parts of a run that say how it went and not what it gave."""
LEFTOVERS = (".partial-*", ".lock_holder", "best-*")
"""What nothing may leave behind once it is done."""

Result = dict[str, str]


def result(place: Path, outputs: Iterable[str], ended: Ended | None = None) -> Result:
    """Return file (or `stdout`) -> digest; an output that is missing has no entry.

    Args:
        outputs: files or directories below `place`.
        ended: the command, if its standard output counts.
    """
    found = {
        file.relative_to(place).as_posix(): _digest(file.suffix, file.read_bytes())
        for output in outputs
        for file in _files(place / output)
    }
    if ended is not None:
        found["stdout"] = _digest(".json", ended.out.encode())
    return found


def difference(expected: Result, found: Result) -> str | None:
    """Return what differs, in a few words."""
    parts = []
    for word, names in (
        ("missing", expected.keys() - found.keys()),
        ("new", found.keys() - expected.keys()),
        ("different", {name for name in expected.keys() & found.keys() if expected[name] != found[name]}),
    ):
        if names:
            parts.append(f"{word}: {', '.join(sorted(names)[:4])}")
    return "; ".join(parts) or None


def leftovers(place: Path) -> list[str]:
    """Return what a command left behind that its next one should have removed."""
    found = [path for pattern in LEFTOVERS for path in place.rglob(pattern)]
    found += [*(place / CACHE).glob(".*-*"), *(place / TEMPORARY).glob("*")]
    return sorted(path.relative_to(place).as_posix() for path in found)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not any(part in PASSING for part in file.relative_to(path).parts):
                yield file
    elif path.is_file():
        yield path


def _digest(suffix: str, content: bytes) -> str:
    if suffix in (".json", ".jsonl"):
        lines = [content] if suffix == ".json" else content.splitlines()
        with suppress(ValueError):  # it counts as it is
            content = json.dumps([_steady(json.loads(line)) for line in lines], sort_keys=True).encode()
    if suffix == ".md":  # a card has a table of metrics
        content = b"\n".join(line for line in content.splitlines() if b"_runtime" not in line)
    return hashlib.sha256(content).hexdigest()[:16]


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in VOLATILE}
    return [_steady(item) for item in value] if isinstance(value, list) else value
