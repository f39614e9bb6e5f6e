"""What config, tokenizer and shapes tell of a run before any data or weights are read, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peftcli.assembly.collect_problems import collecting, located
from peftcli.assembly.rows_to_train import known_tokens, rows_to_train
from peftcli.assembly.vocabulary_notes import vocabulary_notes
from peftcli.errors import Problem, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.load_model import load_config
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.model_files import find_source
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer_with_notes
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.stored_quantised import stored_packed, stored_problems
from peftcli.models.structure.norms_and_biases import NO_GRADIENT
from peftcli.models.targets.target import short_path
from peftcli.models.weights.weight_damage import check_weight_files
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import ModelSpec, Recipe, TaskName
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Outline:
    """What is known of a run before data and weights.

    Args:
        spec: the model block, with the 4 bits that a method implies.
        anatomy: read on the meta device.
        notes: what the user should know of tokenizer and anatomy.
        made_for: tokens of a row that the model was made for, by its config; None where that does not say it.
    """

    info: MethodInfo
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    notes: tuple[str, ...]
    made_for: int | None


class FurtherChecks:
    """Checks that one use of the model needs beyond those of every use; training overrides them.

    Each method returns problems. They are reported together with those of the outline.

    Attributes:
        trains: whether something is to be trained.
    """

    trains = False

    def of_recipe(self, recipe: Recipe, device: torch.device) -> list[Problem]:
        """Return what is wrong with the recipe on this machine."""
        return []

    def of_model(self, recipe: Recipe, meta: PreTrainedModel) -> list[Problem]:
        """Return what the model cannot do; it is on the meta device, nothing attached."""
        return []

    def of_parameters(self, recipe: Recipe, attachment: Attachment) -> list[Problem]:
        """Return what is wrong with the parameters that the method trains."""
        return []


def model_spec(recipe: Recipe) -> ModelSpec:
    """Return the model block with the 4 bits that the method implies (QLoRA)."""
    if registry.info(recipe.method.name).forces_4bit and not recipe.model.load_in_4bit:
        return recipe.model.model_copy(update={"load_in_4bit": True})
    return recipe.model


def outline(loaded: LoadedRecipe, device: torch.device, further: FurtherChecks | None = None) -> Outline:
    """Check everything that config, tokenizer and shapes can tell; no data, no weights.

    Args:
        further: what the caller asks beyond that.

    Raises:
        UserError: every problem found, with file and line where the recipe has them.
    """
    recipe, further = loaded.recipe, further or FurtherChecks()
    info = registry.info(recipe.method.name)
    spec = model_spec(recipe)
    config = load_config(spec)
    tokenizer, notes = load_tokenizer_with_notes(spec)
    problems = [
        *method_problems(info, recipe.task, spec, config),
        *further.of_recipe(recipe, device),
        *known_tokens(spec),
    ]
    problems += stored_problems(config, spec, device.type, trains=further.trains)
    anatomies: list[Anatomy] = []
    of_method: list[str] = []
    with collecting(problems):
        check_weight_files(find_source(spec.name_or_path))
        meta = build_meta(config, recipe.task, spec.num_labels or 2, trust_remote_code=spec.trust_remote_code)
        problems += further.of_model(recipe, meta)
        size = len(meta.get_input_embeddings().weight)
        fit_to_tokenizer(meta, tokenizer)
        anatomy = read_anatomy(meta, recipe.model.anatomy)
        problems += kind_problems(anatomy, recipe.task)
        rows = rows_to_train(spec, recipe.method, tokenizer)
        attachment = apply_method(meta, anatomy, recipe.method, train_head=recipe.training.train_head, rows=rows)
        problems += further.of_parameters(recipe, attachment)
        notes += vocabulary_notes(meta, tokenizer, spec, attachment, anatomy, size)
        anatomies.append(anatomy)
        of_method += [*_left_out(anatomy, attachment), *attachment.notes]
    if problems:
        raise UserError(located(loaded, problems))
    anatomy = anatomies[0]
    notes = [*notes, *anatomy.notes, *of_method]
    made_for = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Outline(
        info, spec, tokenizer, anatomy, tuple(notes), made_for if isinstance(made_for, int) and made_for > 0 else None
    )


def _left_out(anatomy: Anatomy, attachment: Attachment) -> list[str]:
    """Return which modules without a role take no part: a sentence for each kind that no note names."""
    taken = {target.module for target in attachment.targets}
    places: dict[tuple[str, str], list[str]] = {}
    for path, why in anatomy.left_out:
        if path not in taken and why != NO_GRADIENT:
            places.setdefault((short_path(path), why), []).append(path)
    return [
        f"{paths[0] if len(paths) == 1 else f'{name} of {len(paths)} blocks'} is left out: {why}"
        for (name, why), paths in places.items()
        if not any(f" {name} " in note.replace(",", " ") for note in attachment.notes)
    ]


def kind_problems(anatomy: Anatomy, task: TaskName) -> list[Problem]:
    """Return that a family outside the table sees later tokens, and so cannot do a task that asks for none of that."""
    refusal = task_info(task).refused.get("encoder")
    if refusal is None or anatomy.origin != "structure" or set(anatomy.layers) != {"encoder"}:
        return []
    reason = f"a {anatomy.family} model cannot do {task}: tried, its tokens see later ones; {refusal.reason}"
    return [Problem(reason, key="task", suggestion=refusal.remedy)]


def method_problems(info: MethodInfo, task: TaskName, spec: ModelSpec, config: PretrainedConfig) -> list[Problem]:
    """Return that a method does not serve the task, or cannot train a base in fewer bits.

    Args:
        spec: with the 4 bits that the method implies.
    """
    problems = []
    if info.tasks and task not in info.tasks:
        choice = f"it serves {', '.join(sorted(info.tasks))}"
        problems.append(Problem(f"{info.name} does not serve {task}", key="method.name", suggestion=choice))
    here = spec.load_in_4bit or spec.load_in_8bit
    if not info.quantised_base and (here or stored_packed(config)):
        change = "remove model.load_in_4bit" if here else "name the unquantised model"
        remedy = f"{change}, or choose a method that works on a quantised base"
        problems.append(Problem(f"{info.name} cannot train a quantised base", key="method.name", suggestion=remedy))
    return problems
