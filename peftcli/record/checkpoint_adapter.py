"""The adapter that a checkpoint holds, for commands that use a run before it is finished, or an earlier step of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from peftcli.adapters.format import SavedAdapter, recorded_params
from peftcli.adapters.loading import load_adapter, run_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.sidecar import meta_of
from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.errors import UserError
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.recipe.schema import Recipe
from peftcli.record.checkpoints import Checkpoints, read_verified
from peftcli.record.run_directory import RunDirectory, RunStatus
from peftcli.record.train_state import TrainState
from peftcli.typed_record import record_of

BEST, LAST = "best", "last"
ABOUT = "about"
"""Key of a checkpoint's tree below which `AdapterMeta.as_dict()` is."""


def checkpoint_adapter(run: Path, recipe: Recipe, which: str) -> SavedAdapter:
    """Return the adapter of a checkpoint of a run, finished or not.

    Args:
        run: its directory.
        recipe: as it was run.
        which: `last`, `best` (of a finished run its own adapter), or a step, as `200` or `step-200`.

    Raises:
        UserError: there is no such checkpoint (names those that are there), it is damaged, or an earlier version wrote
            it, which recorded no labels and no base with it.
    """
    if which == BEST and (run / "adapter").is_dir() and RunDirectory(run).status() is RunStatus.FINISHED:
        return load_adapter(run_adapter(run))  # beside an unfinished longer run lies that of the shorter one
    checkpoints = Checkpoints(run, None)
    step = _step(checkpoints.steps(), run, which)
    directory = checkpoints.directory / f"step-{step:06d}"
    tree = read_verified(directory)
    if not isinstance(tree, dict) or {ABOUT, "adapter", "progress"} - tree.keys():
        raise UserError(
            f"{directory} does not say what its adapter belongs to: an earlier version wrote it",
            suggestion="continue with --resume, which writes checkpoints that do",
        )
    state, name = tree["adapter"], f"step {step}"
    progress = record_of(TrainState, tree["progress"], directory / "state.json", key="progress")
    if which == BEST:
        best = progress.best_step
        if best is None:
            raise UserError(f"{run} was not evaluated yet, so no step is the best", suggestion="use --checkpoint last")
        state, name = checkpoints.load_best(best)["adapter"], f"step {best}, the best so far"
    meta = meta_of(tree[ABOUT], directory / "state.json", ABOUT)
    params = recorded_params(progress.method_of(recipe), meta.token_rows)
    return SavedAdapter(params, state, meta, (f"the adapter of {name}",), recorded=True)


def without_best(run: Path, which: str | None) -> str | None:
    """Return the checkpoint that is asked for, or None where that is the result of a finished run: its best."""
    return None if which == BEST and RunDirectory(run).status() is RunStatus.FINISHED else which


@contextmanager
def adapter_directory(run: Path, recipe: Recipe, which: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield an adapter directory with what `checkpoint_adapter` returns, and which step that is of, as notes.

    The directory is removed afterwards.

    Raises:
        UserError: as there.
    """
    saved = checkpoint_adapter(run, recipe, which)
    texts = LearntTexts.from_dict(saved.meta.texts or {})
    leaving = leaving_model(recipe.model, recipe.task, load_tokenizer(recipe.model), texts)
    with TemporaryDirectory(prefix="peftcli-") as scratch:
        directory = Path(scratch) / "adapter"
        save_adapter(directory, attachment_state=saved.state, params=saved.params, meta=saved.meta, leaving=leaving)
        yield directory, saved.notes


def _step(steps: list[int], run: Path, which: str) -> int:
    """Return the step of the checkpoint to read: for the best one, of the last, which names it."""
    number = re.fullmatch(r"(?:step-)?(\d{1,12})", which)
    if which in (LAST, BEST) and steps:
        return steps[-1]
    if number and int(number[1]) in steps:
        return int(number[1])
    there = ", ".join([*(f"step-{step}" for step in steps), LAST, BEST]) if steps else "none"
    raise UserError(f"{run} has no checkpoint {which!r}", suggestion=f"there are: {there}")
