"""The directory that a run leaves: its states, its lock, its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from peftcli.atomic import remove_partial, write_text
from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.schema import Recipe
from peftcli.recipe.stored_recipe import recipe_as_written
from peftcli.record.checkpoints import Checkpoints
from peftcli.record.metrics_file import MetricsFile, finite
from peftcli.record.recipe_changes import changed_keys
from peftcli.record.run_lock import HOLDER_FILE, LOCK_FILE, run_lock
from peftcli.typed_record import read_object
from peftcli.write_errors import OTHER_RUN, writing

OWN_ENTRIES = (
    "recipe.yaml",
    "adapter",
    "model",
    "checkpoints",
    "metrics.jsonl",
    "summary.json",
    "plots",
    "samples.jsonl",
    "skipped_rows.jsonl",
    "logs",
    "profile",
    LOCK_FILE,
    HOLDER_FILE,
)
"""What a run writes; `--overwrite` removes these and nothing else."""

TRAIN_AGAIN = "train again with `peft train RECIPE --overwrite`"
"""What helps where a file of a run is damaged."""


class RunStatus(Enum):
    """What an output directory holds."""

    EMPTY = "empty"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


class RunDirectory:
    """One run's directory.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.summary_file = path / "summary.json"

    def checkpoints(self, keep: int | None = None) -> Checkpoints:
        """Return the run's checkpoints, of which `keep` stay."""
        return Checkpoints(self.path, keep)

    def status(self) -> RunStatus:
        """Return what the directory holds.

        Raises:
            UserError: it is a file, or holds something that is not a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir {self.path} is a file", suggestion="choose another output_dir")
        if self.recipe_file.is_file():
            return RunStatus.FINISHED if self.summary_file.is_file() else RunStatus.UNFINISHED
        entries = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        foreign = sorted(name for name in entries if name not in OWN_ENTRIES and not name.startswith("."))
        if foreign:
            raise UserError(
                f"output_dir {self.path} holds files that are no run: {', '.join(foreign[:3])}",
                suggestion="choose another output_dir, or empty this one",
            )
        return RunStatus.EMPTY

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> RunStatus:
        """Return the status if training may go ahead (or is done already).

        Args:
            recipe: the resolved recipe.

        Raises:
            UserError: another recipe's run is here, or an unfinished one without `resume`; `resume` and `overwrite`.
        """
        if resume and overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it", suggestion="give one of the two")
        status = self.status()
        if status is RunStatus.EMPTY or overwrite:
            return RunStatus.EMPTY
        different = changed_keys(self.recipe().as_dict(), recipe.as_dict())
        if different:
            shown = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
            start = f" (method.init_from={self.path} starts from what it learnt)"
            raise UserError(
                f"output_dir {self.path} holds a run of another recipe; they differ in {shown}",
                suggestion=f"choose another output_dir{start if status is RunStatus.FINISHED else ''}, "
                "or replace that run with --overwrite",
            )
        if status is RunStatus.UNFINISHED and not resume:
            raise UserError(
                f"output_dir {self.path} holds an unfinished run of this recipe",
                suggestion="continue it with --resume, or start again with --overwrite",
            )
        return status

    def recipe(self) -> Recipe:
        """Return the resolved recipe of the run that is here; keys that came later have their defaults.

        Raises:
            UserError: it was damaged or changed, or another version wrote it.
        """
        try:
            return recipe_as_written(self.recipe_file, NAMES)
        except UserError as error:
            replace = Problem(f"output_dir {self.path} holds a run", suggestion="replace it with --overwrite")
            raise UserError([*error.problems, replace]) from error

    @contextmanager
    def locked(self, lock: bool = True) -> Iterator[None]:
        """Make the directory and hold it, so that two runs never write into it; remove it if nothing came of it.

        Args:
            lock: False where the file system has no locks and the user vouches for it.

        Raises:
            UserError: another process holds it, it cannot be made, or its file system has no locks.
        """
        with ExitStack() as stack:
            with writing(self.path, OTHER_RUN):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.callback(self._remove_if_empty)
                if lock:
                    stack.enter_context(run_lock(self.path))
            yield

    def _remove_if_empty(self) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def begin(self, recipe_text: str) -> None:
        """Remove what an earlier run left, and write recipe.yaml: the directory is an unfinished run from here on."""
        self._clear()
        write_text(self.recipe_file, recipe_text, instead=OTHER_RUN)

    def _clear(self) -> None:
        for name in OWN_ENTRIES:
            entry = self.path / name
            if name in (LOCK_FILE, HOLDER_FILE):  # the process that clears holds them
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        remove_partial(self.path)

    def discard_start(self) -> None:
        """Remove what a run wrote that took no step: the same command then starts it again."""
        if self.recipe_file.is_file() and not self.summary_file.is_file() and not self._steps():
            self._clear()

    def how_to_go_on(self) -> str:
        """Say what an interrupted run left, and how to go on."""
        if self.summary_file.is_file():
            return f"stopped while loading; the finished run in {self.path} is as it was"
        if self.checkpoints().steps():
            return "stopped without saving; --resume continues from the last checkpoint"
        if self._steps():
            return "stopped before anything was saved; start again with --overwrite"
        return "stopped before the first step: nothing was trained and nothing is kept; the same command starts again"

    def what_is_left(self) -> str:
        """Say what a run that the machine ended left, and how to go on once that is mended."""
        steps = self.checkpoints().steps()
        if self.summary_file.is_file():
            return f"the finished run in {self.path} is as it was"
        if steps:
            return f"the state of step {steps[-1]} is saved: --resume goes on from there"
        if self._steps():
            return "no checkpoint was saved yet: --resume starts again at the first step"
        return "no step was taken yet: the same command starts again"

    def _steps(self) -> int:
        """Return how many steps are known to have been taken here."""
        return max([0, *self.checkpoints().steps(), *(int(line.get("step", 0)) for line in self.metrics.lines())])

    def write_skipped_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """List the broken rows that were passed over, if there are any: source, row, message, excerpt, expectation."""
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(self.path / "skipped_rows.jsonl", lines, instead=OTHER_RUN)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; it is the last file of a run and marks it finished."""
        text = json.dumps(finite(summary), indent=2, allow_nan=False) + "\n"
        write_text(self.summary_file, text, instead=OTHER_RUN)

    def summary(self) -> dict[str, Any]:
        """Return summary.json.

        Raises:
            UserError: it was damaged.
        """
        return read_object(self.summary_file, suggestion=TRAIN_AGAIN)
