"""Checkpoints: everything that a run needs to go on bit for bit, in directories that appear whole or not at all.

    checkpoints/step-000200/   state.json, state.safetensors, manifest.json
    checkpoints/best-000150/   the best adapter so far, the same way; removed when the run is done

A checkpoint names the best adapter that it knew, so both are pruned together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from peftcli.atomic import new_directory, remove_directory, remove_partial
from peftcli.errors import UserError
from peftcli.record.tensor_tree import FILES, load_tree, save_tree
from peftcli.shown_text import first_line
from peftcli.typed_record import read_object, record_of
from peftcli.write_errors import OTHER_RUN

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"(step|best)-([0-9]{6,15})")

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    """A file as it was written."""

    size: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """What manifest.json holds; `best` says `best_step` again, which nothing else would check."""

    format: int
    files: dict[str, _Entry]
    best_step: int | None = None
    best: str | None = None


class Checkpoints:
    """The checkpoint directory of one run."""

    def __init__(self, run: Path, keep: int | None) -> None:
        """Open `run`/checkpoints, which need not exist; `keep` is `save_total_limit`."""
        self.directory = run / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in order."""
        return self._numbers("step")

    def bests(self) -> list[int]:
        """Return the steps whose adapter was once the best and is kept, in order."""
        return self._numbers("best")

    def save(self, step: int, tree: Any) -> Path:
        """Write the checkpoint of `step`, then remove the ones beyond the limit.

        Those of later steps go, too: a run that went on from an earlier one passed them over, since they are damaged.
        """
        path = self._write(f"step-{step:06d}", tree)
        for later in self.steps():
            if later > step:
                remove_directory(self.directory / f"step-{later:06d}")
        self.prune()
        return path

    def save_best(self, step: int, tree: Any) -> None:
        """Write the adapter of `step` as the best so far; older ones stay while a checkpoint names them.

        The others go at once: between two checkpoints there may be hundreds of evaluations, each better than the last.
        """
        self._write(f"best-{step:06d}", tree)
        self._prune_bests(step)

    def load_best(self, step: int) -> Any:
        """Return what `save_best` wrote.

        Raises:
            UserError: it is damaged.
        """
        return read_verified(self.directory / f"best-{step:06d}")

    def find_best(self, step: int) -> str | None:
        """Look at the adapter that was the best at `step`: a damaged one is written again from that step's checkpoint.

        Returns:
            What is wrong with it; None if it is whole now.
        """
        try:
            read_verified(self.directory / f"best-{step:06d}")
        except UserError as damage:
            try:
                self.save_best(step, {"adapter": read_verified(self.directory / f"step-{step:06d}")["adapter"]})
            except (UserError, KeyError, TypeError):
                return first_line(damage)
        return None

    def latest(self, note: Callable[[str], None], read: Callable[[Any, Path], T]) -> T | None:
        """Return the newest checkpoint, or None without one; a damaged one is named and passed over.

        Args:
            note: receives which one is damaged, as a sentence.
            read: makes of a checkpoint's tree and its directory what is returned; a UserError means that it is damaged.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            directory = self.directory / f"step-{step:06d}"
            try:
                return read(read_verified(directory), directory)
            except UserError as error:
                note(f"{first_line(error)}; going back to the one before")
        if steps:
            problem = f"every checkpoint of this run is damaged (in {self.directory})"
            raise UserError(problem, suggestion="start again with --overwrite")
        return None

    def prune(self) -> None:
        """Remove checkpoints beyond the limit, and best adapters that none of the others names."""
        if not self.directory.is_dir():
            return
        remove_partial(self.directory)
        if self.keep is not None:
            for step in self.steps()[: -self.keep]:
                remove_directory(self.directory / f"step-{step:06d}")
        self._prune_bests(max(self.steps(), default=0))

    def _prune_bests(self, newest: int) -> None:
        """Remove best adapters of before `newest` that no checkpoint names; a later one waits for its checkpoint."""
        named = {self._best_of(step) for step in self.steps()}
        for step in self.bests():
            if step not in named and step < newest:
                remove_directory(self.directory / f"best-{step:06d}")

    def remove_best(self) -> None:
        """Remove every best adapter: it is in the run directory now."""
        for step in self.bests():
            remove_directory(self.directory / f"best-{step:06d}")

    def _best_of(self, step: int) -> int | None:
        """Return the best adapter that a checkpoint names; None if it is damaged: nobody will ask for its best."""
        try:
            return _manifest(self.directory / f"step-{step:06d}").best_step
        except UserError:
            return None

    def _numbers(self, kind: str) -> list[int]:
        entries = list(self.directory.iterdir()) if self.directory.is_dir() else []
        found = [match for path in entries if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
        return sorted(int(match[2]) for match in found if match[1] == kind)

    def _write(self, name: str, tree: Any) -> Path:
        path = self.directory / name
        with new_directory(path, instead=OTHER_RUN) as partial:
            save_tree(partial, tree)
            best = tree.get("progress", {}).get("best_step") if isinstance(tree, dict) else None
            files = {
                name: {"size": (partial / name).stat().st_size, "sha256": _sha256(partial / name)} for name in FILES
            }
            record = {"format": FORMAT, "best_step": best, "best": _best_name(best), "files": files}
            (partial / MANIFEST).write_text(json.dumps(record, indent=2), encoding="utf-8")
        return path


def _best_name(step: int | None) -> str | None:
    """Return the directory of a best adapter."""
    return None if step is None else f"best-{step:06d}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _manifest(directory: Path) -> _Manifest:
    """Return a checkpoint's manifest.

    Raises:
        UserError: it is missing or damaged, or of a later format.
    """
    path = directory / MANIFEST
    try:
        record = read_object(path)
        version = record.get("format")
        if isinstance(version, int) and FORMAT < version < 1000:
            raise UserError(f"the checkpoint {directory} has format {version}; this version reads {FORMAT}")
        found = record_of(_Manifest, record, path)
    except UserError as error:
        if error.problems[0].file is None:
            raise
        raise UserError(f"the checkpoint {directory} is damaged: {first_line(error)}") from error
    same = "best" not in record or found.best == _best_name(found.best_step)  # earlier versions wrote it once
    if not same or found.format != FORMAT or set(found.files) != set(FILES):
        raise UserError(f"the checkpoint {directory} is damaged: {MANIFEST} is not what was written")
    return found


def read_verified(directory: Path) -> Any:
    """Return a checkpoint's tree after comparing its files with the manifest.

    Raises:
        UserError: a file is missing, has another size or another hash, or the format is a later one.
    """
    for name, entry in _manifest(directory).files.items():
        path = directory / name
        try:
            same = path.is_file() and path.stat().st_size == entry.size and _sha256(path) == entry.sha256
        except OSError as error:
            reason = f"{name} cannot be read: {error.strerror or error}"
            raise UserError(f"the checkpoint {directory} is damaged: {reason}") from error
        if not same:
            raise UserError(f"the checkpoint {directory} is damaged: {name} is not what was written")
    return load_tree(directory)
