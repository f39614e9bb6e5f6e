"""The reference of preference tuning: this very model before its first step, on the rows that it will be compared on.

Its log-probabilities are computed once, so that a step costs one forward and one backward pass of both answers; or
live, in every pass, with a frozen copy of the values. A run that goes on takes what it began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from peftcli import __version__
from peftcli.assembly.run_reference import TRAIN, RunReference, read_run_reference, validation_key
from peftcli.data.rows.referenced_rows import Reference, ReferencedRows
from peftcli.data.rows.row_fingerprint import row_fingerprint
from peftcli.data.rows.row_set import RowSet
from peftcli.data.store.stored_reference import read_reference, reference_file, write_reference
from peftcli.distributed.processes import World
from peftcli.distributed.whole_tensors import whole_tree
from peftcli.errors import UserError
from peftcli.inference.evaluator import Evaluator
from peftcli.models.load.load_model import Loaded
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import Recipe
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.training.computing import Computing
from peftcli.training.start.frozen_start import FrozenStart
from peftcli.training.step_batches import StepBatches

COPY_BACK = "copy the run's reference/ back, or start again with --overwrite"


@dataclass(frozen=True)
class StartModel:
    """The live model of a run before its steps: the base, the method on it, and how training computes."""

    base: Loaded
    info: MethodInfo
    attachment: Attachment
    computing: Computing


def with_reference(
    recipe: Recipe,
    directory: RunDirectory,
    start: StartModel,
    evaluator: Evaluator,
    batches: StepBatches,
    validation: Mapping[str, RowSet],
    state: TrainState,
) -> tuple[Mapping[str, RowSet], RunReference | None]:
    """Give a run's rows the log-probabilities of the model before the first step, where the task's loss reads them.

    Args:
        start: as it is before the first step, unless the run goes on.
        evaluator: of the live model.
        batches: their rows are replaced.

    Returns:
        the validation sets, and what the run's directory is to keep: None where nothing, or it is there already.

    Raises:
        UserError: a run that goes on has lost its record.
    """
    world, precision = evaluator.world, start.computing.precision
    if not evaluator.task.needs_reference:
        return validation, None
    if recipe.training.reference == "live":
        return validation, _kept_live(recipe, directory, start, evaluator, state)
    sets = {TRAIN: batches.rows, **{validation_key(name): rows for name, rows in validation.items()}}
    record = None
    if state.step:
        values = dict(world.from_main(lambda: _recorded(directory, sets)))
    else:
        parts = _parts(recipe, start.info, start.attachment, world)
        facts = _facts(state.method_of(recipe), start.base, parts)
        values = {}
        for name, rows in sets.items():
            own, computes_in = evaluator, precision.weights
            if name == TRAIN:
                own = replace(evaluator, context=partial(precision.training, world.device), joined=start.computing)
                computes_in = precision.compute
            values[name] = _values(rows, own, {**facts, "dtype": str(computes_in)})
        record = RunReference(
            values,
            {name: row_fingerprint(rows) for name, rows in sets.items()},
            parts,
            base=start.base.identity.as_dict(),
        )
    batches.use_rows(ReferencedRows(batches.rows, values[TRAIN]))
    return {name: ReferencedRows(rows, values[validation_key(name)]) for name, rows in validation.items()}, record


def _kept_live(
    recipe: Recipe, directory: RunDirectory, start: StartModel, evaluator: Evaluator, state: TrainState
) -> RunReference | None:
    """Keep a frozen copy of the model before the first step for the task, and return what the directory is to keep.

    Raises:
        UserError: a run that goes on has lost its copy.
    """
    world, attachment, record = evaluator.world, start.attachment, None
    of_base = start.info.artifact == "model" and recipe.method.init_from is None
    kept: Mapping[str, torch.Tensor] = {}
    if state.step:
        found = world.from_main(lambda: read_run_reference(directory.path))
        if found is None or not (found.live or of_base):
            raise UserError(f"{directory.path} has no copy of the values before the first step", suggestion=COPY_BACK)
        kept = found.live
    frozen = FrozenStart(attachment, kept)
    evaluator.task.compare_with(frozen.in_place)
    if not state.step:
        own = {} if of_base else frozen.tensors()
        live = whole_tree(own, keep=world.is_main) if world.strategy.sharded else own
        record = RunReference(
            {}, {}, _parts(recipe, start.info, attachment, world), live, start.base.identity.as_dict()
        )
    return record


def _recorded(directory: RunDirectory, sets: Mapping[str, RowSet]) -> Mapping[str, Reference]:
    """Return the values that the run began with.

    Raises:
        UserError: they are gone, or of other rows.
    """
    found = read_run_reference(directory.path)
    missing = [name for name, rows in sets.items() if found is None or len(found.values.get(name, ())) != len(rows)]
    if found is None or missing:
        raise UserError(
            f"{directory.path} has no log-probabilities of the model before the first step for its {missing[0]} rows",
            suggestion=COPY_BACK,
        )
    return found.values


def _parts(recipe: Recipe, info: MethodInfo, attachment: Attachment, world: World) -> dict[str, torch.Tensor]:
    """Return the method's state; nothing where it is the base's own."""
    if info.artifact == "model" and recipe.method.init_from is None:
        return {}
    state = attachment.state_dict()
    return whole_tree(state, keep=world.is_main) if world.strategy.sharded else dict(state)


def _facts(method: MethodParams, base: Loaded, parts: Mapping[str, torch.Tensor | None]) -> dict[str, str]:
    """Return what decides the values besides the rows: the base, its parts, and what computes.

    Of the parts also their settings: a scale or the positions that are changed are in no tensor.
    """
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(parts.items()):
        if tensor is not None:
            own = tensor.detach().cpu().contiguous()
            total.update(f"{name} {own.dtype} {tuple(own.shape)};".encode())
            total.update(own.reshape(-1).view(torch.uint8).numpy().tobytes())
    identity = base.identity
    return {
        "base": f"{identity.fingerprint} {identity.tensors} {identity.quantization} {identity.dtype}",
        "parts": total.hexdigest(),
        "method": method.model_dump_json(exclude={"init_from"}),
        "versions": f"{__version__} {torch.__version__} {identity.versions}",
        "device": next(base.model.parameters()).device.type,
    }


def _values(rows: RowSet, evaluator: Evaluator, facts: Mapping[str, str]) -> Reference:
    """Return the values of some rows: those that are kept beside them, or computed now and kept."""
    world = evaluator.world
    file = reference_file(rows, facts)
    found = world.from_main(lambda: read_reference(file, len(rows)))
    if found is None:
        found = evaluator.log_probabilities(rows)
        if world.is_main:
            write_reference(file, found)
    return np.asarray(found, dtype=np.float32)
