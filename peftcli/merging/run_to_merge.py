"""Open a run for merging: its recipe, its adapter, and its unquantised base on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.adapters.format import SavedAdapter, base_of, check_base
from peftcli.adapters.loading import load_adapter, run_adapter
from peftcli.data.store.labels import LabelSpec
from peftcli.deliverables.checksums import check_checksums
from peftcli.deliverables.learnt_texts import LearntTexts, learnt_texts_of_recipe
from peftcli.distributed.devices import usable_device
from peftcli.errors import UserError
from peftcli.inference.text_inputs import changed_texts
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.heads import configure_head
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.load.load_model import identify, load_config, saved_model_spec
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.model_files import ModelSource, find_source
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer
from peftcli.models.model_tasks import is_text_part
from peftcli.models.own_code import with_allowed_code
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.stored_quantised import quantiser_title, stored_method, stored_problems
from peftcli.names import NAMES
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.folding import rows_of, rule_of
from peftcli.protocol.method import REPLACES, MergeRule, MergeStep
from peftcli.protocol.registry import registry
from peftcli.protocol.rows_beside.row_rules import folding_rules
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.recipe.stored_recipe import load_stored_recipe, refuse_unfinished, stored_recipe
from peftcli.record.checkpoint_adapter import checkpoint_adapter, without_best


@dataclass
class RunToMerge:
    """A run, opened for merging; no weights are loaded.

    Args:
        directory: of the run.
        recipe: as it was run.
        spec: the unquantised base.
        source: where the base lies.
        adapter: what was trained; None for a run that left a complete model, and for `combined`.
        labels: of a classification head.
        model: the task model on the meta device, fitted to the tokenizer, without parts.
        anatomy: its roles.
        tokenizer: the run's.
        texts: what it learnt of texts.
        notes: what the user should know.
        stored: the quantiser of the base's files; None of plain ones.
        combined: rules that combine several adapters, where they are not one adapter.
        parts: the runs that `combined` combines.
        method: what was folded in, for the report; empty for the recipe's method.
        whole: config of the base, where its files hold more than the model: towers beside the text part that it is.
    """

    directory: Path
    recipe: Recipe
    spec: ModelSpec
    source: ModelSource
    adapter: SavedAdapter | None
    labels: LabelSpec | None
    model: PreTrainedModel
    anatomy: Anatomy
    tokenizer: Any
    texts: LearntTexts = field(default_factory=LearntTexts)
    notes: list[str] = field(default_factory=list)
    stored: str | None = None
    combined: dict[str, MergeRule] | None = None
    parts: tuple[RunToMerge, ...] = ()
    method: str = ""
    whole: PretrainedConfig | None = None

    @property
    def of_several_labels(self) -> bool:
        """Whether a row can have several of the labels."""
        return self.labels is not None and self.labels.problem == "multi_label"

    def rules(self) -> dict[str, MergeRule]:
        """Return the method's rules, and those that put task head, `modules_to_save` and token rows in place.

        A complete model has none: its tensors are copied.

        Raises:
            UserError: nothing would change.
        """
        if self.combined is not None:
            return self.combined
        if self.adapter is None:
            return {}
        params, state = self.adapter.params, self.adapter.state
        rules = folding_rules(self.model, self.anatomy, params, state)
        if not rules:
            raise UserError(
                f"{params.name} changed no weights of the base model, so there is nothing to merge",
                suggestion="keep the adapter, and use it with peft predict",
            )
        whole = {name: state[name] for name in whole_tensors(self.model, state)}
        return beneath(rules, whole) | {name: placed(value) for name, value in whole.items() if name not in rules}


def whole_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return the saved tensors that are parameters of the base or its head, under their own names."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in state if name in names]


def placed(value: Tensor) -> MergeRule:
    """Return the rule that replaces the base's tensor, if it has one, by `value`."""
    return rule_of([_placing(value)], "add", replaces=True)


def beneath(rules: Mapping[str, MergeRule], whole: Mapping[str, Tensor]) -> dict[str, MergeRule]:
    """Return a method's rules, each for the value that its tensor was trained to where that was trained whole, too."""
    return {
        name: rule if name not in whole else
        # the base need not have a tensor whose value is given (a task head)
        rule_of([_placing(whole[name]), *rule.in_steps()], "untie" if rule.kind == "untie" else "add", replaces=True)
        for name, rule in rules.items()
    }  # fmt: skip


def _placing(value: Tensor) -> MergeStep:
    return MergeStep(lambda _base: value.float().clone(), REPLACES, rows_of(value))


def open_run_to_merge(
    directory: Path, base: str | None, trust_code: bool = False, checkpoint: str | None = None
) -> RunToMerge:
    """Open a run that trained an adapter.

    Args:
        directory: of the run.
        base: name or path of the base, if not the recipe's.
        trust_code: let the Python code that comes with the model run.
        checkpoint: take the adapter of this one.

    Raises:
        UserError: no finished run is there, or no such checkpoint, its method does not merge, or its adapter does not
            fit the base.
    """
    loaded = load_stored_recipe(stored_recipe(directory), NAMES, trust_code=trust_code)
    recipe = loaded.recipe
    checkpoint = without_best(directory, checkpoint)
    if checkpoint is None and (directory / "model").is_dir() and registry.info(recipe.method.name).artifact == "model":
        return _open_model(directory, loaded, base)
    if checkpoint is None:
        adapter = load_adapter(run_adapter(directory))
    else:
        adapter = checkpoint_adapter(directory, recipe, checkpoint)
    reason = registry.method(adapter.params.name).why_not_mergeable(adapter.params)
    if reason is not None:
        raise UserError(f"{adapter.params.name} cannot be merged: {reason}")
    if base is None:
        _refuse_missing_base(recipe.model.name_or_path)
    loaded = with_allowed_code(loaded, unquantised(recipe.model, base))
    recipe = loaded.recipe
    spec = unquantised(recipe.model, base)
    run = _on_meta(directory, recipe, spec, adapter)
    _refuse_misfit(run.model, run.anatomy, adapter)
    run.notes += [*adapter.notes, *_notes(recipe, spec, base)]
    return run


def _refuse_missing_base(name: str) -> None:
    try:
        find_source(name)
    except UserError as error:
        raise UserError(
            f"the run's base model is gone: {error.problems[0].message}",
            suggestion="name it where it is now with --base MODEL",
        ) from error


def _open_model(directory: Path, loaded: LoadedRecipe, base: str | None) -> RunToMerge:
    """Open a run whose artifact is a complete model: it is its own base."""
    recipe = loaded.recipe
    if base is not None:
        raise UserError(
            f"{recipe.method.name} trained the whole model: there is no base to merge into",
            suggestion="leave --base out",
        )
    refuse_unfinished(directory)
    model = directory / "model"
    recipe = with_allowed_code(loaded, saved_model_spec(recipe.model, model)).recipe
    check_checksums(directory / "model")
    spec = saved_model_spec(recipe.model, model).model_copy(update={"dtype": "auto"})
    return _on_meta(directory, recipe, spec, None)


def _on_meta(directory: Path, recipe: Recipe, spec: ModelSpec, adapter: SavedAdapter | None) -> RunToMerge:
    """Build the task model on the meta device, and load its tokenizer and anatomy.

    Raises:
        UserError: the base is stored quantised, and cannot be read here.
    """
    config = load_config(spec)
    stored = stored_method(config)
    problems = stored_problems(config, spec, usable_device(recipe.training.device).type)
    if problems:
        raise UserError([replace(each, suggestion=f"{each.suggestion}; --base names it") for each in problems])
    labels = None if adapter is None else adapter.meta.label_spec
    configure_head(config, recipe.task, labels, spec)
    tokenizer = load_tokenizer(spec)
    model = build_meta(config, recipe.task, config.num_labels, trust_remote_code=spec.trust_remote_code)
    source = find_source(spec.name_or_path)
    notes = (
        [] if adapter is None else _compare_base(adapter, identify(source, model, torch.float32, None, spec), directory)
    )
    notes += [] if stored is None else [_stored_note(spec, stored)]
    notes += [] if adapter is None else changed_texts(directory, recipe, tokenizer)
    fit_to_tokenizer(model, tokenizer)
    anatomy = read_anatomy(model, recipe.model.anatomy)
    texts, unknown = _texts(recipe, adapter, tokenizer)
    whole = config if is_text_part(model, config, recipe.task) else None
    if whole is not None and stored is not None:
        raise UserError(
            f"{spec.name_or_path} is stored quantised and holds more than a text model: a merge would lose the rest",
            suggestion="name the unquantised model with --base",
        )
    return RunToMerge(
        directory, recipe, spec, source, adapter, labels, model, anatomy, tokenizer, texts, [*notes, *unknown],
        stored=stored, whole=whole,
    )  # fmt: skip


def _stored_note(spec: ModelSpec, method: str) -> str:
    return (
        f"{spec.name_or_path} is stored quantised with {quantiser_title(method)}: merged into the dequantised weights; "
        "--base ORIGINAL merges into the weights that were quantised"
    )


def _texts(recipe: Recipe, adapter: SavedAdapter | None, tokenizer: Any) -> tuple[LearntTexts, list[str]]:
    """Return what the run learnt of texts, and notes; a complete model's own files hold it."""
    if adapter is None:
        return LearntTexts(), []
    if adapter.meta.texts is not None:
        return LearntTexts.from_dict(adapter.meta.texts), []
    return learnt_texts_of_recipe(recipe, tokenizer)


def _compare_base(adapter: SavedAdapter, identity: BaseIdentity, directory: Path) -> list[str]:
    """Refuse a base of another shape, and say when its files are not those of training."""
    check_base(adapter.meta, identity, directory / "adapter")
    recorded = base_of(adapter.meta)
    if recorded is None or recorded.same_files(identity):
        return []
    return [f"the files of {identity.name} are not those that the adapter was trained on"]


def unquantised(spec: ModelSpec, base: str | None) -> ModelSpec:
    """Return the base as it is merged into: not quantised, in the checkpoint's own type."""
    changes = {"load_in_4bit": False, "load_in_8bit": False, "name_or_path": base or spec.name_or_path}
    return spec.model_copy(update=changes | ({"revision": None} if base else {}))


def is_quantised(recipe: Recipe) -> bool:
    """Return whether the run was trained on a 4- or 8-bit base."""
    spec = recipe.model
    return spec.load_in_4bit or spec.load_in_8bit or registry.info(recipe.method.name).forces_4bit


def _notes(recipe: Recipe, spec: ModelSpec, base: str | None) -> list[str]:
    notes = []
    if is_quantised(recipe):
        notes.append(f"trained on a quantised base; merged into the unquantised {spec.name_or_path}")
    if base is not None and base != recipe.model.name_or_path:
        notes.append(f"merged into {base} instead of the run's {recipe.model.name_or_path}")
    return notes


def _refuse_misfit(model: nn.Module, anatomy: Anatomy, adapter: SavedAdapter) -> None:
    """Compare the adapter's tensors with what the method would add to this base, before any weight is read."""
    attachment = apply_method(model, anatomy, adapter.params)
    try:
        attachment.load_state_dict(adapter.state)  # shapes and names only: the model is on the meta device
    finally:
        attachment.detach()
        model.requires_grad_(False)
