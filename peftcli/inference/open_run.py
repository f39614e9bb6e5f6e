"""Opening a finished run: its base as it was while training, its adapter in place, ready to compute."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftcli.adapters.base_shape import check_config
from peftcli.adapters.format import SavedAdapter, base_of
from peftcli.adapters.loading import load_adapter
from peftcli.assembly.outline import model_spec
from peftcli.assembly.positions_left import positions_left
from peftcli.assembly.precision import Precision
from peftcli.assembly.recipe_task import make_task
from peftcli.assembly.rows_to_train import rows_to_train
from peftcli.assembly.run_reference import RunReference
from peftcli.data.store.labels import LabelSpec
from peftcli.deliverables.checksums import check_checksums
from peftcli.deliverables.learnt_texts import learnt_texts_of_recipe
from peftcli.distributed.devices import usable_device
from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.inference.compared_sets import RunStart
from peftcli.inference.opened_run import OpenedRun
from peftcli.inference.text_inputs import changed_texts
from peftcli.models.few_blocks import FirstBlocks
from peftcli.models.last_block import last_block
from peftcli.models.load.dtypes import dtype_name, dtype_named
from peftcli.models.load.heads import PROBLEM_TYPES
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.load.load_model import Loaded, load_model, saved_model_spec
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer_with_notes
from peftcli.models.own_code import with_allowed_code
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.weights.wider_tensors import restore_wider
from peftcli.names import NAMES
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.run_paths import homes
from peftcli.recipe.schema import DTypeName, ModelSpec, Recipe, TaskName
from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe
from peftcli.record.checkpoint_adapter import checkpoint_adapter, without_best
from peftcli.record.random_state import random_numbers_kept
from peftcli.record.run_directory import RunDirectory, RunStatus
from peftcli.tasks.generation import settings_note
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Bases:
    """The base that was opened last, kept so that runs on the same one load it once."""

    _key: tuple[Any, ...] | None = None
    _base: Loaded | None = None

    def load(self, spec: ModelSpec, task: TaskName, labels: LabelSpec | None, world: World, seed: int) -> Loaded:
        """Return a base model, the one that is kept if it is the same; as it was loaded, nothing attached."""
        names = None if labels is None else (labels.problem, labels.names)
        key = (spec, task, names, world.device, seed)
        if self._base is None or key != self._key:
            self._base = None  # let go of the old one before the new one is read
            self._base, self._key = load_model(spec, task, labels=labels, device=world.device, seed=seed), key
        return self._base


@dataclass(frozen=True)
class Opening:
    """How a run is opened, as far as it is not as it was trained.

    Args:
        base_dtype: hold the frozen weights in this dtype instead of the one in training; results then differ.
        max_new_tokens: longest generated text in tokens; None is the recipe's.
        trust_code: let the Python code that comes with the model run; the run's own recipe does not decide that.
        checkpoint: use this one (`checkpoint_adapter`), not the result of the finished run.
    """

    base_dtype: DTypeName | None = None
    max_new_tokens: int | None = None
    trust_code: bool = False
    checkpoint: str | None = None


AS_TRAINED = Opening()


@dataclass(frozen=True)
class FoundRun:
    """A finished run, checked as far as it can be without the weights of its base.

    Args:
        saved: its adapter; None where it left a complete model.
        spec: the model block that rebuilds its base, or loads the complete model.
        labels: of a classification task; None until it is loaded for a complete model.
        notes: what a user should know.
        computes_in: dtype of the products; None is that of the weights. A complete model is kept in float32, and was
            evaluated in its base's dtype.
        read_as: format of the training rows of a complete model, which has no summary.
        other_dtype: whether the user asked for the base in another dtype than in training.
    """

    directory: RunDirectory
    loaded: LoadedRecipe
    saved: SavedAdapter | None
    spec: ModelSpec
    labels: LabelSpec | None
    tokenizer: PreTrainedTokenizerBase
    notes: list[str]
    computes_in: DTypeName | None = None
    read_as: str | None = None
    other_dtype: bool = False

    @property
    def trained_format(self) -> str | None:
        """The format of the training rows; None where the run has no record of it."""
        return self.read_as or trained_format(self.directory)


def open_run(run: Path | str, opening: Opening = AS_TRAINED) -> OpenedRun:
    """Return a run's model on its base.

    Args:
        run: the run directory.

    Raises:
        UserError: it is no finished run, there is no such checkpoint, or its base is gone or is another model.
    """
    return load_run(find_run(run, opening))


def find_run(run: Path | str, opening: Opening = AS_TRAINED) -> FoundRun:
    """Check everything about a run but the weights of its base: recipe, adapter, config, tokenizer.

    Raises:
        UserError: it is no finished run, or its base is gone or has another shape.
    """
    directory = RunDirectory(Path(run))
    file = stored_recipe(directory.path)
    checkpoint = without_best(directory.path, opening.checkpoint)
    if checkpoint is None and directory.status() is RunStatus.UNFINISHED:
        remedy = "continue it with `peft train RECIPE --resume`, or use what it has so far with `--checkpoint last`"
        raise UserError(f"the run {run} is not finished", suggestion=remedy)
    loaded = with_text_length(load_stored_recipe(file, NAMES, trust_code=opening.trust_code), opening.max_new_tokens)
    other = opening.base_dtype is not None
    if checkpoint is None and registry.info(loaded.recipe.method.name).artifact == "model":
        return replace(_find_model(directory, loaded, opening.base_dtype), other_dtype=other)
    try:
        return replace(_find_adapter(directory, loaded, opening.base_dtype, checkpoint), other_dtype=other)
    except UserError as error:
        about = _relative_base(directory.path, loaded.recipe)
        raise UserError([*error.problems, *about]) from error


def _relative_base(run: Path, recipe: Recipe) -> list[Problem]:
    """Say what the base's path was relative to, where it is one that is not here."""
    name, places = recipe.model.name_or_path, homes(run, recipe)
    if Path(name).is_absolute() or name.startswith(("package:", "~")) or Path(name).exists() or not places:
        return []
    where = " or ".join(map(str, places))
    return [Problem(f"if {name!r} is a directory: it was relative to {where}, where the run was trained")]


@random_numbers_kept()
def load_run(found: FoundRun, bases: Bases | None = None) -> OpenedRun:
    """Return the model of a run that was found; `bases` keeps its base for the next one.

    Raises:
        UserError: the base is another model.
    """
    world = World(usable_device(found.loaded.recipe.training.device))
    saved = found.saved
    run = _load_model(found, world) if saved is None else _load_adapter(found, saved, world, bases or Bases())
    start = RunStart(
        found.directory.path,
        lambda kept: _at_start(found, kept, run.base.dtype, world).log_probabilities,
        as_trained=not found.other_dtype,
    )
    return replace(run, trained_format=found.trained_format, start=start)


def _at_start(found: FoundRun, kept: RunReference, dtype: torch.dtype, world: World) -> OpenedRun:
    """Return the model before a run's first step.

    Args:
        kept: what the run kept of it; the base alone is that model where no parts are there.
        dtype: of the base.

    Raises:
        UserError: the base is another model now, and nothing else is kept of it.
    """
    recipe, tokenizer = found.loaded.recipe, found.tokenizer
    spec = model_spec(recipe) if found.saved is None else found.spec
    spec = spec.model_copy(update={"dtype": dtype_name(dtype)})
    base = load_model(spec, recipe.task, device=world.device, seed=recipe.seed)
    if not kept.parts and kept.base and not BaseIdentity.from_dict(kept.base).same_files(base.identity):
        raise UserError(
            f"the files of {base.identity.name} changed since training, and answers are compared with that model",
            suggestion="restore the files; the run's own validation rows can be evaluated without them",
        )
    fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)
    attachment = Attachment(base.model)
    if kept.parts:
        anatomy = read_anatomy(base.model, recipe.model.anatomy)
        rows = rows_to_train(recipe.model, recipe.method, tokenizer)
        attachment = apply_method(base.model, anatomy, recipe.method, rows=rows)
        attachment.load_state_dict(kept.parts)
    return opened(found.loaded, tokenizer, attachment, None, base, world)


def with_text_length(loaded: LoadedRecipe, max_new_tokens: int | None) -> LoadedRecipe:
    """Return the recipe with another limit for generated text, or as it is for None.

    Raises:
        UserError: its task generates none.
    """
    if max_new_tokens is None:
        return loaded
    task = loaded.recipe.task
    if not task_info(task).generates:
        raise UserError(f"--max-new-tokens is for generated text; {task} has none", suggestion="leave it out")
    return loaded.with_training(max_new_tokens=max_new_tokens)


def trained_format(directory: RunDirectory) -> str | None:
    """Return the format of a run's training rows, from its summary; None without one."""
    try:
        data = directory.summary().get("data")
    except UserError:
        return None
    name = data.get("format") if isinstance(data, dict) else None
    return name if isinstance(name, str) and name in NAMES.formats else None


def _find_adapter(
    directory: RunDirectory, loaded: LoadedRecipe, base_dtype: DTypeName | None, checkpoint: str | None
) -> FoundRun:
    loaded = with_allowed_code(loaded)
    recipe = loaded.recipe
    if checkpoint is None:
        saved = load_adapter(directory.path / "adapter")
    else:
        saved = checkpoint_adapter(directory.path, recipe, checkpoint)
    labels = saved.meta.label_spec
    if labels is None and task_info(recipe.task).has_labels:
        raise UserError(
            f"{directory.path / 'adapter'} names no labels: its peftcli.json is missing or damaged",
            suggestion="copy the file back, or train again",
        )
    spec, notes = _same_base(model_spec(recipe), saved, base_dtype)
    check_config(saved.meta, spec, directory.path)  # before seconds and gigabytes are spent on its weights
    tokenizer, of_tokenizer = load_tokenizer_with_notes(spec)
    of_texts = changed_texts(directory.path, recipe, tokenizer)
    return FoundRun(directory, loaded, saved, spec, labels, tokenizer, [*saved.notes, *notes, *of_tokenizer, *of_texts])


def _load_adapter(found: FoundRun, saved: SavedAdapter, world: World, bases: Bases) -> OpenedRun:
    recipe, labels, tokenizer = found.loaded.recipe, found.labels, found.tokenizer
    base = bases.load(found.spec, recipe.task, labels, world, recipe.seed)
    notes = [*found.notes, *_changed_base(saved, base), *base.notes]
    notes += fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)
    anatomy = read_anatomy(base.model, recipe.model.anatomy)
    before = dict(base.model.named_parameters(remove_duplicate=False))
    dtypes = {name: parameter.dtype for name, parameter in before.items()}
    attachment = apply_method(base.model, anatomy, saved.params)
    replaced = dict.fromkeys([*attachment.unfrozen, *attachment.head, *attachment.to_save])
    replaced |= {name: None for name, parameter in before.items() if parameter.dtype != dtypes[name]}
    untouched = {name: before[name].detach().to(dtypes[name], copy=True) for name in replaced}
    attachment.load_state_dict(saved.state)
    return opened(found.loaded, tokenizer, attachment, labels, base, world, notes, untouched)


def _find_model(directory: RunDirectory, loaded: LoadedRecipe, base_dtype: DTypeName | None) -> FoundRun:
    """Find a run whose artifact is a complete model: nothing will be attached."""
    model = directory.path / "model"
    loaded = with_allowed_code(loaded, saved_model_spec(loaded.recipe.model, model))
    check_checksums(model)
    spec, notes = held_in(saved_model_spec(loaded.recipe.model, model), base_dtype)
    tokenizer, of_tokenizer = load_tokenizer_with_notes(spec)
    computes_in = _evaluated_in(directory) if base_dtype is None else None
    return FoundRun(directory, loaded, None, spec, None, tokenizer, [*notes, *of_tokenizer], computes_in)


def held_in(spec: ModelSpec, dtype: DTypeName | None) -> tuple[ModelSpec, list[str]]:
    """Return a complete model's block with its weights held in a dtype, and what to say of it; None is its own."""
    if dtype is None:
        return spec, []
    return spec.model_copy(update={"dtype": dtype}), [f"weights held in {dtype}: results can differ from training"]


def _evaluated_in(directory: RunDirectory) -> DTypeName | None:
    """Return the dtype that a run evaluated in, from its summary; None where that does not say."""
    try:
        name = directory.summary().get("weights_dtype")
    except UserError:
        return None
    return name if name in ("float32", "bfloat16", "float16") else None


def _load_model(found: FoundRun, world: World) -> OpenedRun:
    base = load_model(found.spec, found.loaded.recipe.task, device=world.device)
    labels = _labels_of(base.config, found.loaded.recipe)
    notes = [*found.notes, *base.all_notes]
    if found.computes_in is not None:
        restore_wider(base.model, found.directory.path / "model")
        base = replace(base, dtype=dtype_named(found.computes_in))
    return opened(found.loaded, found.tokenizer, Attachment(base.model), labels, base, world, notes)


def opened(
    loaded: LoadedRecipe,
    tokenizer: PreTrainedTokenizerBase,
    attachment: Attachment,
    labels: LabelSpec | None,
    base: Loaded,
    world: World,
    notes: Sequence[str] = (),
    untouched: Mapping[str, Tensor] | None = None,
) -> OpenedRun:
    """Return a model with its parts, loaded and filled, as a run to use; nothing of it is trainable afterwards."""
    model, prepare = attachment.model, attachment.prepare_inputs
    model.eval()
    model.requires_grad_(False)
    precision = Precision(base.dtype, base.dtype, False, "as the weights")
    anatomy = read_anatomy(model, loaded.recipe.model.anatomy)
    left, of_targets = positions_left(anatomy, loaded.recipe.method), anatomy.max_target_positions
    stops = learnt_texts_of_recipe(loaded.recipe, tokenizer)[0].stop_token_ids  # an evaluation's texts end there, too
    recipe = without_class_weights(loaded.recipe)
    task = make_task(recipe, tokenizer, labels, stop_ids=stops, positions=left, target_positions=of_targets)
    cuts = loaded.recipe.training.fast_paths.last_block and task.info.rows == "labelled"
    with precision.inference(world.device):
        found = FirstBlocks(model, anatomy.layers).find(lambda _: task.bind(model, prepare), settles=operator.not_)
        notes = (*notes, *found)
        if task.info.generates and (of_settings := settings_note(model, tokenizer)):
            notes = (*notes, of_settings)
        cut = last_block(model, anatomy, prepare) if cuts else None
    return OpenedRun(
        loaded, model, tokenizer, attachment, task, labels, base, precision, world, notes, untouched or {}, cut=cut
    )


def without_class_weights(recipe: Recipe) -> Recipe:
    """Return the recipe without `class_weights`: they shape training, not results."""
    training = recipe.training.model_copy(update={"class_weights": None})
    return recipe.model_copy(update={"training": training})


def _same_base(spec: ModelSpec, saved: SavedAdapter, base_dtype: DTypeName | None) -> tuple[ModelSpec, list[str]]:
    """Return the model block that rebuilds the base of training: its dtype is what it was, wherever this runs."""
    recorded = saved.meta.base.get("dtype")
    dtype = base_dtype or recorded or spec.dtype
    notes = []
    if base_dtype is not None and base_dtype != recorded:
        notes.append(f"the base is held in {base_dtype}, but training held it in {recorded}: results can differ")
    revision = saved.meta.base.get("revision") or spec.revision
    return spec.model_copy(update={"dtype": dtype, "revision": revision}), notes


def _changed_base(saved: SavedAdapter, base: Loaded) -> list[str]:
    """Say when the base's files are not those of training."""
    recorded = base_of(saved.meta)
    if recorded is None or recorded.same_files(base.identity):
        return []
    return [f"the files of {base.identity.name} changed since training: results can differ"]


def _labels_of(config: Any, recipe: Recipe) -> LabelSpec | None:
    """Return the labels that a complete model's config holds."""
    kind = task_info(recipe.task).label_kind
    if kind is None:
        return None
    if kind == "token":
        return LabelSpec("token", tuple(config.id2label[i] for i in range(config.num_labels)))
    kinds = {theirs: ours for ours, theirs in PROBLEM_TYPES.items()}
    problem = kinds.get(config.problem_type, kind)
    names = () if problem == "regression" else tuple(config.id2label[i] for i in range(config.num_labels))
    return LabelSpec(problem, names)
