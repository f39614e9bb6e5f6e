"""Using what was trained: open a run, evaluate it, predict with it. The base is rebuilt as it was while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcli.adapters.base_model import check_config
from peftcli.adapters.loading import SavedAdapter, load_adapter
from peftcli.data.labels import LabelSpec
from peftcli.data.prepare import prepare_for_evaluation, prepare_for_prediction
from peftcli.errors import UserError
from peftcli.methods.apply import apply_method
from peftcli.methods.attachment import Attachment
from peftcli.methods.registry import registry
from peftcli.models.identity import BaseIdentity
from peftcli.models.loading import Loaded, load_model
from peftcli.models.reading import read_anatomy
from peftcli.models.tokenizers import fit_to_tokenizer, load_tokenizer
from peftcli.recipe.load import LoadedRecipe, load_recipe
from peftcli.recipe.schema import DataSpec, DTypeName, ModelSpec, Recipe
from peftcli.training.collation import Collator
from peftcli.training.metrics import wanted_metrics
from peftcli.training.precision import Precision, pick_device
from peftcli.training.run_directory import RunDirectory, RunStatus
from peftcli.training.setup import make_evaluator, make_task, model_spec, outline, prepare_data
from peftcli.training.tasks import Task
from peftcli.training.world import World

Note = Callable[[str], None]

WINDOW = 64
"""Batches of rows that are sorted by length together while predicting; results come in the order of the file."""


@dataclass
class OpenedRun:
    """A finished run, ready to use.

    Args:
        model: in eval mode, parts attached and filled, nothing trainable.
        labels: of a classification task.
        precision: the weights' dtype.
        notes: what a user should know, such as another base dtype than in training.
    """

    loaded: LoadedRecipe
    model: nn.Module
    tokenizer: Any
    attachment: Attachment
    task: Task
    labels: LabelSpec | None
    base: Loaded
    precision: Precision
    world: World
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return self.loaded.recipe

    def evaluate(self, sets: dict[str, Any]) -> dict[str, Any]:
        """Return `eval_*` metrics over row sets by name."""
        metrics = wanted_metrics(self.task.default_metrics, self.recipe.training, list(sets))
        collator = Collator(self.tokenizer, self.task)
        evaluator = make_evaluator(self.recipe, self.model, self.task, collator, self.world, self.precision, metrics)
        return evaluator(sets)

    def predict(self, rows: Any) -> Iterator[dict[str, Any]]:
        """Yield `prediction` and `scores` of each row, in order."""
        collator = Collator(self.tokenizer, self.task)
        size = self.recipe.training.per_device_eval_batch_size
        for start in range(0, len(rows), WINDOW * size):
            window = range(start, min(len(rows), start + WINDOW * size))
            ordered = sorted(window, key=lambda row: -int(rows.lengths[row]))
            found: dict[int, dict[str, Any]] = {}
            for first in range(0, len(ordered), size):
                chosen = ordered[first : first + size]
                batch = collator.batch([rows[row] for row in chosen], generate=True)
                with torch.no_grad(), self.precision.inference(self.world.device):
                    predicted = self.task.predict(self.model, batch.to(self.world.device))
                found.update(zip(chosen, predicted, strict=True))
            yield from (found[row] for row in window)


def open_run(run: Path | str, base_dtype: DTypeName | None = None) -> OpenedRun:
    """Return a finished run's model on its base.

    Args:
        run: the run directory.
        base_dtype: hold the frozen weights in this dtype instead of the one in training; results then differ.

    Raises:
        UserError: it is no finished run, or its base is gone or is another model.
    """
    directory = RunDirectory(Path(run))
    if directory.status() is RunStatus.EMPTY:
        raise UserError(f"{run} is no run directory", suggestion="name a directory that `peft train` left")
    if directory.status() is RunStatus.UNFINISHED:
        raise UserError(f"the run {run} is not finished", suggestion="go on with `peft train RECIPE --resume`")
    loaded = load_recipe(directory.recipe_file, [], registry, need_data=False)  # an imported adapter has none
    world = World(pick_device(loaded.recipe.training.device))
    if registry.info(loaded.recipe.method.name).artifact == "model":
        return _open_model(directory, loaded, world, base_dtype)
    return _open_adapter(directory, loaded, world, base_dtype)


def _open_adapter(
    directory: RunDirectory, loaded: LoadedRecipe, world: World, base_dtype: DTypeName | None
) -> OpenedRun:
    recipe = loaded.recipe
    saved = load_adapter(directory.path / "adapter")
    labels = LabelSpec.from_dict(dict(saved.meta.labels)) if saved.meta.labels else None
    spec, notes = _same_base(model_spec(recipe), saved, base_dtype)
    check_config(saved.meta, spec, directory.path)  # before seconds and gigabytes are spent on its weights
    tokenizer = load_tokenizer(spec, recipe.task)
    base = load_model(spec, recipe.task, labels=labels, device=world.device, seed=recipe.seed)
    notes += _changed_base(saved, base)
    fit_to_tokenizer(base.model, tokenizer, seed=recipe.seed)
    anatomy = read_anatomy(base.model, recipe.model.anatomy)
    attachment = apply_method(base.model, anatomy, saved.params)
    attachment.load_state_dict(saved.state)
    return _opened(loaded, tokenizer, attachment, labels, base, world, notes)


def _open_model(directory: RunDirectory, loaded: LoadedRecipe, world: World, base_dtype: DTypeName | None) -> OpenedRun:
    """Open a run whose artifact is a complete model: nothing is attached."""
    recipe = loaded.recipe
    path = directory.path / "model"
    spec = recipe.model.model_copy(update={"name_or_path": str(path), "revision": None, "new_special_tokens": []})
    notes = []
    if base_dtype is not None:
        spec = spec.model_copy(update={"dtype": base_dtype})
        notes.append(f"weights held in {base_dtype}: results can differ from training")
    tokenizer = load_tokenizer(spec, recipe.task)
    base = load_model(spec, recipe.task, device=world.device)
    labels = _labels_of(base.config, recipe)
    return _opened(loaded, tokenizer, Attachment(base.model), labels, base, world, notes)


def _opened(
    loaded: LoadedRecipe,
    tokenizer: Any,
    attachment: Attachment,
    labels: LabelSpec | None,
    base: Loaded,
    world: World,
    notes: list[str],
) -> OpenedRun:
    model = attachment.model
    model.eval()
    model.requires_grad_(False)
    precision = Precision(base.dtype, base.dtype, False, "as the weights")
    task = make_task(without_class_weights(loaded.recipe), tokenizer, labels)
    with precision.inference(world.device):
        notes += task.bind(model, attachment.prepare_inputs)
    return OpenedRun(loaded, model, tokenizer, attachment, task, labels, base, precision, world, notes)


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
        notes.append(f"the base is held in {base_dtype}, in training it was {recorded}: results can differ")
    revision = saved.meta.base.get("revision") or spec.revision
    return spec.model_copy(update={"dtype": dtype, "revision": revision}), notes


def _changed_base(saved: SavedAdapter, base: Loaded) -> list[str]:
    """Say when the base's files are not those of training."""
    recorded = BaseIdentity.from_dict(saved.meta.base) if "fingerprint" in saved.meta.base else None
    if recorded is None or recorded.fingerprint == base.identity.fingerprint:
        return []
    return [f"the files of {base.identity.name} changed since training: results can differ"]


def _labels_of(config: Any, recipe: Recipe) -> LabelSpec | None:
    """Return the labels that a complete model's config holds."""
    if "classification" not in recipe.task:
        return None
    if recipe.task == "token_classification":
        return LabelSpec("token", tuple(config.id2label[i] for i in range(config.num_labels)))
    kinds: dict[Any, Any] = {"multi_label_classification": "multi_label", "regression": "regression"}
    problem = kinds.get(config.problem_type, "single_label")
    names = () if problem == "regression" else tuple(config.id2label[i] for i in range(config.num_labels))
    return LabelSpec(problem, names)


def evaluate_run(
    path: Path | str, data: str | None = None, base_dtype: DTypeName | None = None, note: Note = lambda _text: None
) -> dict[str, Any]:
    """Return `eval_*` metrics of a run, or of a recipe's untrained base.

    Args:
        path: a run directory or a recipe.
        data: labelled rows to use instead of the validation rows.
        note: receives what the user should know, such as another base dtype than in training.

    Raises:
        UserError: nothing to evaluate on, or anything about run, recipe or data is wrong.
    """
    path = Path(path)
    if not path.is_dir():
        return _evaluate_recipe(load_recipe(path, [], registry), data, base_dtype)
    opened = open_run(path, base_dtype)
    for text in opened.notes:
        note(text)
    recipe = opened.recipe
    if data is not None:
        rows = prepare_for_evaluation(data, data_spec(recipe), recipe.task, opened.tokenizer, opened.labels)
        return opened.evaluate({"": rows})
    anatomy = read_anatomy(opened.model, recipe.model.anatomy)
    prepared = prepare_data(opened.loaded, opened.tokenizer, anatomy, opened.world)
    return opened.evaluate(_with_rows(prepared.validation, path))


def _evaluate_recipe(loaded: LoadedRecipe, data: str | None, base_dtype: DTypeName | None) -> dict[str, Any]:
    recipe = loaded.recipe
    world = World(pick_device(recipe.training.device))
    known = outline(loaded, world.device)
    prepared = prepare_data(loaded, known.tokenizer, known.anatomy, world)
    spec = known.spec.model_copy(update={"dtype": base_dtype}) if base_dtype else known.spec
    base = load_model(spec, recipe.task, labels=prepared.labels, device=world.device, seed=recipe.seed)
    fit_to_tokenizer(base.model, known.tokenizer, seed=recipe.seed)
    opened = _opened(loaded, known.tokenizer, Attachment(base.model), prepared.labels, base, world, [])
    if data is not None:
        rows = prepare_for_evaluation(data, data_spec(recipe), recipe.task, known.tokenizer, prepared.labels)
        return opened.evaluate({"": rows})
    return opened.evaluate(_with_rows(prepared.validation, loaded.path))


def _with_rows(sets: dict[str, Any], where: Path | str) -> dict[str, Any]:
    filled = {name: rows for name, rows in sets.items() if len(rows)}
    if not filled:
        raise UserError(f"{where} has no validation rows", suggestion="name labelled rows with --data FILE")
    return filled


def data_spec(recipe: Recipe) -> DataSpec:
    """Return the recipe's data block."""
    return recipe.data or DataSpec()


def predict_run(
    run: Path | str, data: str, base_dtype: DTypeName | None = None, note: Note = lambda _text: None
) -> Iterator[dict[str, Any]]:
    """Return predictions for a file, a row for each of its rows in order.

    Args:
        run: a run directory.
        data: any data file of the task's format; labels may be absent.
        note: receives what the user should know.

    Raises:
        UserError: anything about the run or the file is wrong; raised here, before the first prediction.
    """
    opened = open_run(run, base_dtype)
    for text in opened.notes:
        note(text)
    recipe = opened.recipe
    rows = prepare_for_prediction(data, data_spec(recipe), recipe.task, opened.tokenizer, opened.labels)
    stops = end_of_turn(opened.tokenizer, rows)
    if stops:
        settings = opened.task.settings
        opened.task.settings = type(settings)(**{**vars(settings), "stop_ids": stops})
    return opened.predict(rows)


def end_of_turn(tokenizer: Any, rows: Any) -> tuple[int, ...]:
    """Return the token with which the rows' chat template ends a turn, if it is one."""
    turn = rows.store.meta.get("end_of_turn")
    number = tokenizer.convert_tokens_to_ids(turn) if turn else None
    return (number,) if isinstance(number, int) and number != tokenizer.unk_token_id else ()
