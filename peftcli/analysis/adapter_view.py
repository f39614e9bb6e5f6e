"""What a saved adapter changed, module by module: sizes, spectra, ranks. No model is loaded.

The task model is built on the meta device, the method attaches its parts, and the low-rank ones among them get the
saved values. The base's weights are read from disk one at a time, for their norms and where a change depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.loading import load_adapter, run_adapter
from peftcli.analysis.base_weights import FileWeights, base_weights
from peftcli.analysis.module_change import ModuleChange, weight_change
from peftcli.analysis.part_changes import PartChanges
from peftcli.errors import Problem, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.heads import configure_head
from peftcli.models.load.load_model import load_config, saved_model_spec
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer
from peftcli.models.own_code import with_allowed_code
from peftcli.models.read_anatomy import read_anatomy
from peftcli.names import NAMES
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.method import MergeRule
from peftcli.protocol.registry import registry
from peftcli.protocol.rows_beside.added_rows import by_table
from peftcli.protocol.rows_beside.row_rules import folding_rules
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import ModelSpec, Recipe, TaskName
from peftcli.recipe.stored_recipe import load_stored_recipe
from peftcli.record.checkpoint_adapter import checkpoint_adapter, without_best


@dataclass
class AdapterView:
    """The measurements of a saved adapter or complete model.

    Args:
        params: the method's hyper-parameters.
        rows: one for each place, in the model's order.
        notes: what was left out, and why.
    """

    params: MethodParams
    rows: list[ModuleChange]
    notes: list[str] = field(default_factory=list)


def view_adapter(path: Path, trust_code: bool = False, checkpoint: str | None = None) -> AdapterView:
    """Measure the adapter or model of a run, or an adapter directory.

    Args:
        path: what `peft train` left, or a directory with adapter_config.json.
        trust_code: let the Python code that comes with the model run.
        checkpoint: of a run: measure the adapter of this one.

    Raises:
        UserError: neither is there, or the base's config is out of reach.
    """
    if (path / "recipe.yaml").is_file():
        loaded = load_stored_recipe(path / "recipe.yaml", NAMES, trust_code=trust_code)
        recipe = with_allowed_code(loaded).recipe
        checkpoint = without_best(path, checkpoint)
        if checkpoint is not None and registry.info(recipe.method.name).artifact == "adapter":
            return _view_adapter(checkpoint_adapter(path, recipe, checkpoint), recipe.model, recipe.task)
        if checkpoint is not None:
            remedy = "finish the training; `peft merge --checkpoint` writes the model of a checkpoint"
            raise UserError(f"a checkpoint of {recipe.method.name} is a whole model, not an adapter", suggestion=remedy)
        if registry.info(recipe.method.name).artifact == "model":
            with_allowed_code(loaded, saved_model_spec(recipe.model, path / "model"))
            return _view_model(path, recipe)
        return _view_adapter(load_adapter(run_adapter(path)), recipe.model, recipe.task)
    if checkpoint is not None:
        raise UserError(f"--checkpoint is for a run directory; {path} is none", suggestion="leave it out")
    if (path / CONFIG).is_file():
        saved = load_adapter(path)
        if not saved.meta.base.get("name"):
            remedy = "turn it into a run with its base: peft import DIR -o RUN --base MODEL"
            raise UserError(f"{path / CONFIG} does not name its base model", suggestion=remedy)
        spec = ModelSpec(name_or_path=str(saved.meta.base["name"]), trust_remote_code=trust_code)
        try:
            return _view_adapter(saved, spec, saved.meta.task)
        except UserError as error:
            raise UserError(_placed(path, problem) for problem in error.problems) from error
    raise UserError(
        f"{path} is neither a run directory nor an adapter", suggestion="name what `peft train` left, or an adapter/"
    )


def _placed(path: Path, problem: Problem) -> Problem:
    """Return a problem with the file that it is about: the adapter's config named the base, not a recipe."""
    if problem.key == "model.name_or_path":
        return replace(problem, key=None, file=str(path / CONFIG))
    return problem if problem.file else replace(problem, file=str(path))


def _view_adapter(saved: SavedAdapter, spec: ModelSpec, task: TaskName) -> AdapterView:
    model, anatomy = _meta_model(spec, task, saved)
    base, reason = base_weights(model, spec)
    attachment = apply_method(model, anatomy, saved.params)
    attachment.load_state_dict(saved.state)  # on meta: names and shapes only
    rules = _rules(model, anatomy, saved.params, saved.state)  # which take it for granted that nothing is missing
    changes = PartChanges(anatomy, base, rules, saved.state)
    notes = [*saved.notes, *([reason] if reason else [])]
    if not saved.recorded:
        notes.append("no hash lies beside the adapter's weights, so a damaged number would not be noticed")
    if attachment.head:
        notes.append("the task head, trained from scratch beside the method, is left out")
    return AdapterView(saved.params, list(changes.rows(attachment)), notes)


def _meta_model(spec: ModelSpec, task: TaskName, saved: SavedAdapter) -> tuple[nn.Module, Anatomy]:
    config = load_config(spec)
    configure_head(config, task, saved.meta.label_spec, spec)
    model = build_meta(config, task, config.num_labels, trust_remote_code=spec.trust_remote_code)
    fit_to_tokenizer(model, load_tokenizer(spec))
    trained = [number for rows in by_table(saved.params).values() for number in rows if isinstance(number, int)]
    if max(trained, default=0) >= model.get_input_embeddings().weight.shape[0]:
        # an adapter's own directory does not say which tokens its recipe added, only the numbers of their rows
        model.resize_token_embeddings(max(trained) + 1, mean_resizing=False)
    return model, read_anatomy(model, spec.anatomy)


def _rules(
    model: nn.Module, anatomy: Anatomy, params: MethodParams, state: Mapping[str, Tensor]
) -> Mapping[str, MergeRule]:
    """Return how base parameters change; empty for a method that does not fold into them."""
    method = registry.method(params.name)
    return {} if method.why_not_mergeable(params) is not None else folding_rules(model, anatomy, params, state)


def _view_model(run: Path, recipe: Recipe) -> AdapterView:
    """Compare the complete model that a run left with its base, parameter by parameter; frozen ones are left out."""
    path = run / "model"
    if not path.is_dir():
        raise UserError(f"{run} holds no model yet", suggestion="finish the training: peft train RECIPE --resume")
    config = load_config(saved_model_spec(recipe.model, path))
    model = build_meta(config, recipe.task, config.num_labels, trust_remote_code=recipe.model.trust_remote_code)
    anatomy = read_anatomy(model, recipe.model.anatomy)
    trained = FileWeights(model, path)
    base, reason = base_weights(model, recipe.model)
    roles = {f"{linear.module}.weight": linear for linear in anatomy.linears if linear.slice is None}
    rows = []
    for name, _ in model.named_parameters():
        after = trained.read(name)
        if after is None or name.startswith(tuple(f"{path}." for path in anatomy.head)):
            continue
        row = weight_change(name, base.read(name) if base else None, after)
        if row.change == 0.0:
            continue  # frozen
        linear = roles.get(name)
        rows.append(row if linear is None else replace(row, role=linear.role, layer=linear.layer))
    return AdapterView(recipe.method, rows, [reason] if reason else [])
