"""The directory that a run leaves: its states, its lock, its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from peftcli.atomic import write_text
from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.schema import Recipe
from peftcli.recipe.stored_recipe import recipe_as_written
from peftcli.record.checkpoints import Checkpoints
from peftcli.record.open_rate import open_rate_reason
from peftcli.record.own_entries import (
    ARTIFACTS,
    OWN_ENTRIES,
    TRAINED,
    clear,
    partial_files,
    refuse_links,
    remove_partial_files,
)
from peftcli.record.recipe_changes import changed_keys, of_sharing, only_length
from peftcli.record.run_lock import LOCK_FILE, run_lock
from peftcli.record.run_summary import Summary
from peftcli.record.step_lines import StepLines, finite, line_text
from peftcli.shown_text import some_of
from peftcli.typed_record import read_object, record_of
from peftcli.write_errors import OTHER_RUN, writing

TRAIN_AGAIN = "train again with `peft train RECIPE --overwrite`"
"""What helps where a file of a run is damaged."""


class RunStatus(Enum):
    """What an output directory holds."""

    EMPTY = "empty"
    UNFINISHED = "unfinished"
    FINISHED = "finished"
    LONGER = "longer"
    """A run of a recipe that differs in its length alone, to go on with; finished or not."""


class RunDirectory:
    """One run's directory.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.metrics = StepLines(path / "metrics.jsonl")
        self.samples = StepLines(path / "samples.jsonl")
        self.summary_file = path / "summary.json"

    def checkpoints(self, keep: int | None = None) -> Checkpoints:
        """Return the run's checkpoints, of which `keep` stay."""
        return Checkpoints(self.path, keep)

    def status(self) -> RunStatus:
        """Return what the directory holds.

        Raises:
            UserError: it is a file, or holds something that is not a run, or a run that lost its recipe.
        """
        entries = self._refuse_foreign()
        if self.recipe_file.is_file():
            return RunStatus.FINISHED if self.summary_file.is_file() else RunStatus.UNFINISHED
        trained = [name for name in entries if name in TRAINED]
        if trained:
            raise UserError(
                f"output_dir {self.path} holds {', '.join(sorted(trained))} of a run, but not its recipe.yaml",
                suggestion="put the file back, choose another output_dir, or replace what is there with --overwrite",
            )
        return RunStatus.EMPTY

    def _refuse_foreign(self) -> list[str]:
        """Return the names of what is there.

        Raises:
            UserError: it is a file, or there is something that is not a run's, and no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir {self.path} is a file", suggestion="choose another output_dir")
        entries = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        foreign = sorted(name for name in entries if name not in OWN_ENTRIES and not name.startswith("."))
        if foreign and not self.recipe_file.is_file():
            raise UserError(
                f"output_dir {self.path} holds files that do not belong to a run: {', '.join(foreign[:3])}",
                suggestion="choose another output_dir, or empty this one",
            )
        return entries

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> RunStatus:
        """Return the status if training may go ahead (or is done already).

        Args:
            recipe: the resolved recipe.

        Raises:
            UserError: another recipe's run is here, or an unfinished one without `resume`; `resume` and `overwrite`.
        """
        if resume and overwrite:
            raise UserError("--resume continues a run, but --overwrite replaces it", suggestion="give one of the two")
        if overwrite:
            self._refuse_foreign()
            return RunStatus.EMPTY
        status = self.status()
        if status is RunStatus.EMPTY:
            return status
        different = changed_keys(self.recipe().as_dict(), recipe.as_dict())
        if recipe.training.learning_rate is None and self.open_rate_reason() is not None:
            different = [key for key in different if key != "training.learning_rate"]
        if resume or (status is RunStatus.UNFINISHED and all(map(of_sharing, different))):
            different = [key for key in different if not of_sharing(key)]
        if resume and only_length(different):
            return RunStatus.LONGER
        if different:
            go_on = "extend it with --resume, " if only_length(different) else ""
            start = f" (method.init_from={self.path} starts from what it learnt)"
            raise UserError(
                f"output_dir {self.path} holds a run of another recipe; they differ in {some_of(different, 5)}",
                suggestion=f"{go_on}choose another output_dir{start if status is RunStatus.FINISHED else ''}, "
                f"or replace that run with --overwrite; its recipe is in {self.recipe_file}",
            )
        if status is RunStatus.UNFINISHED and not resume:
            raise UserError(
                f"output_dir {self.path} holds an unfinished run of this recipe",
                suggestion="continue it with --resume, or start again with --overwrite",
            )
        return status

    def shared_otherwise(self, recipe: Recipe) -> list[str]:
        """Return the keys in which a recipe shares the rows of a step otherwise than the run here, with both values."""
        then, now = self.recipe(), recipe
        keys = [key for key in changed_keys(then.as_dict(), now.as_dict()) if of_sharing(key)]
        values = {key: [getattr(each.training, key.rpartition(".")[2]) for each in (then, now)] for key in keys}
        return [f"{key} ({before} before, {after} now)" for key, (before, after) in values.items()]

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

    def open_rate_reason(self) -> str | None:
        """Return where the run's learning rate is from, if its recipe left it open; else None."""
        return open_rate_reason(self.recipe_file.read_text(encoding="utf-8"))

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
                refuse_links(self.path)
                if lock:
                    stack.enter_context(run_lock(self.path))
                remove_partial_files(self.path)
            yield

    def _remove_if_empty(self) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def reopen(self, recipe_text: str) -> None:
        """Make a run that is there an unfinished one of another recipe; what it left stays.

        The summary goes first: after a crash in between, the rest is an unfinished run of the old recipe.
        """
        self.summary_file.unlink(missing_ok=True)
        write_text(self.recipe_file, recipe_text, instead=OTHER_RUN)

    def begin(self, recipe_text: str, *, keep: Sequence[str] = ()) -> None:
        """Remove what an earlier run left, and write recipe.yaml: the directory is an unfinished run from here on.

        Args:
            keep: names of `ARTIFACTS` that stay until the new run replaces them.
        """
        clear(self.path, keep)
        write_text(self.recipe_file, recipe_text, instead=OTHER_RUN)

    def tidy(self) -> None:
        """Remove what a finished run needs no more: the best adapters, which are in its artifact, and partial files."""
        remove_partial_files(self.path)
        self.checkpoints().remove_best()

    def tidy_if_needed(self, lock: bool = True) -> None:
        """Remove what a finished run left because it was killed; nothing while another process holds it."""
        if partial_files(self.path) or self.checkpoints().bests() or (self.path / LOCK_FILE).exists():
            with suppress(UserError, OSError), self.locked(lock):  # it may be finishing now, or be read-only
                self.tidy()

    def discard_start(self) -> None:
        """Remove what a run wrote that took no step: the same command then starts it again."""
        if self.recipe_file.is_file() and not self.summary_file.is_file() and not self._was_trained():
            clear(self.path)

    def how_to_go_on(self) -> str:
        """Say what an interrupted run left, and how to go on."""
        if self.summary_file.is_file():
            return f"stopped while loading; the finished run in {self.path} is as it was"
        if self.checkpoints().steps():
            return "stopped without saving; --resume continues from the last checkpoint"
        if self._was_trained():
            there = [f"; {self.path / name} is the whole result" for name in ARTIFACTS if (self.path / name).exists()]
            return f"stopped before its state was saved{''.join(there)}; start again with --overwrite"
        return "stopped before the first step: nothing was trained and nothing is kept; the same command starts again"

    def what_is_left(self) -> str:
        """Say what a run that the machine ended left, and how to go on once that is mended."""
        steps = self.checkpoints().steps()
        if self.summary_file.is_file():
            return f"the run in {self.path} is finished and whole"
        if steps:
            return f"the state of step {steps[-1]} is saved: --resume continues from there"
        if self._was_trained():
            return "no checkpoint was saved yet: --resume starts again at the first step"
        return "no step was taken yet: the same command starts again"

    def _was_trained(self) -> bool:
        """Return whether anything here tells of a step; what cannot be read does."""
        kept = [*self.checkpoints().steps(), *self.checkpoints().bests()]
        if kept or any((self.path / name).exists() for name in ARTIFACTS):
            return True
        return self.metrics.damaged() or any(line["step"] > 0 for line in self.metrics.lines())

    def write_skipped_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """List the broken rows that were passed over, if there are any: source, row, message, excerpt, expectation."""
        if rows:
            write_text(self.path / "skipped_rows.jsonl", "".join(map(line_text, rows)), instead=OTHER_RUN)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; it is the last file of a run and marks it finished."""
        text = json.dumps(finite(summary), indent=2, allow_nan=False) + "\n"
        write_text(self.summary_file, text, instead=OTHER_RUN)

    def summary(self) -> dict[str, Any]:
        """Return summary.json as it is.

        Raises:
            UserError: it was damaged.
        """
        return read_object(self.summary_file, suggestion=TRAIN_AGAIN)

    def summary_record(self) -> Summary:
        """Return summary.json of a run that ended; the directory is the one where it is now.

        Raises:
            UserError: it was damaged, or a key has a value of another kind.
        """
        found = {"status": "already_finished", "output_dir": str(self.path)}  # it may have been moved since
        return record_of(Summary, {**self.summary(), **found}, self.summary_file, suggestion=TRAIN_AGAIN)
