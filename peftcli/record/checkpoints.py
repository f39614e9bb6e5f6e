"""Checkpoints: everything that a run needs to go on bit for bit, in directories that appear whole or not at all.

    checkpoints/step-000200/   state.json, state.safetensors, manifest.json
    checkpoints/best-000150/   the best adapter so far, the same way; removed when the run is done

A checkpoint names the best adapter that it knew, so both are pruned together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftcli.atomic import new_directory, remove_directory, remove_partial
from peftcli.errors import UserError
from peftcli.record.tensor_tree import load_tree, save_tree
from peftcli.write_errors import OTHER_RUN

FORMAT = 1


class Checkpoints:
    """The checkpoint directory of one run."""

    def __init__(self, run: Path, keep: int | None) -> None:
        """Open `run`/checkpoints, which need not exist; `keep` is `save_total_limit`."""
        self.directory = run / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in order."""
        return self._numbers("step")

    def save(self, step: int, tree: Any) -> Path:
        """Write the checkpoint of `step`, then remove the ones beyond the limit."""
        path = self._write(f"step-{step:06d}", tree)
        self.prune()
        return path

    def save_best(self, step: int, tree: Any) -> None:
        """Write the adapter of `step` as the best so far; older ones stay while a checkpoint names them."""
        self._write(f"best-{step:06d}", tree)

    def load_best(self, step: int) -> Any:
        """Return what `save_best` wrote."""
        return read_verified(self.directory / f"best-{step:06d}")

    def latest(self, note: Callable[[str], None]) -> Any | None:
        """Return the newest checkpoint's tree, or None without one; a damaged one is named and passed over.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return read_verified(self.directory / f"step-{step:06d}")
            except UserError as error:
                note(f"{error}; going back to the one before")
        if steps:
            raise UserError("every checkpoint of this run is damaged", suggestion="start again with --overwrite")
        return None

    def prune(self) -> None:
        """Remove checkpoints beyond the limit, and best adapters that none of the others names."""
        if not self.directory.is_dir():
            return
        remove_partial(self.directory)
        if self.keep is not None:
            for step in self.steps()[: -self.keep]:
                remove_directory(self.directory / f"step-{step:06d}")
        named = {self._best_of(step) for step in self.steps()}
        for step in self._numbers("best"):
            if step not in named and step < max(self.steps(), default=0):  # a newer one waits for its checkpoint
                remove_directory(self.directory / f"best-{step:06d}")

    def remove_best(self) -> None:
        """Remove every best adapter: it is in the run directory now."""
        for step in self._numbers("best"):
            remove_directory(self.directory / f"best-{step:06d}")

    def _best_of(self, step: int) -> int | None:
        manifest = json.loads((self.directory / f"step-{step:06d}" / "manifest.json").read_text(encoding="utf-8"))
        best: int | None = manifest.get("best_step")
        return best

    def _numbers(self, kind: str) -> list[int]:
        names = [path.name for path in self.directory.glob(f"{kind}-*")] if self.directory.is_dir() else []
        return sorted(int(name.split("-")[1]) for name in names if name.split("-")[1].isdigit())

    def _write(self, name: str, tree: Any) -> Path:
        path = self.directory / name
        with new_directory(path, instead=OTHER_RUN) as partial:
            save_tree(partial, tree)
            best = tree.get("progress", {}).get("best_step") if isinstance(tree, dict) else None
            (partial / "manifest.json").write_text(json.dumps(_manifest(partial, best), indent=2), encoding="utf-8")
        return path


def _manifest(directory: Path, best_step: int | None) -> dict[str, Any]:
    files = sorted(path for path in directory.iterdir() if path.name != "manifest.json")
    entries = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    return {"format": FORMAT, "best_step": best_step, "files": entries}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_verified(directory: Path) -> Any:
    """Return a checkpoint's tree after comparing its files with the manifest.

    Raises:
        UserError: a file is missing, has another size or another hash, or the format is a newer one.
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the checkpoint {directory} has no readable manifest.json") from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"the checkpoint {directory} has format {manifest.get('format')}; this version reads {FORMAT}")
    for name, entry in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != entry["size"] or _sha256(path) != entry["sha256"]:
            raise UserError(f"the checkpoint {directory} is damaged: {name} is not what was written")
    return load_tree(directory)
