"""What config, tokenizer and shapes tell of a run before any data or weights are read, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from peftcli.assembly.precision import decide_precision
from peftcli.errors import Problem, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.load_model import build_meta, load_config
from peftcli.models.load.tokenizers import load_tokenizer_with_notes
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MethodInfo
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import ModelSpec, Recipe
from peftcli.training.hub_upload import hub_problems
from peftcli.training.optim.optimizers import optimizer_problems
from peftcli.training.optim.parameter_groups import parameter_groups
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from peftcli.training.speed.compiled_blocks import NOTE, compile_problems
from peftcli.training.watch.trackers import tracker_problems


@dataclass(frozen=True)
class Outline:
    """What is known of a run before data and weights.

    Args:
        spec: the model block, with the 4 bits that a method implies.
        anatomy: read on the meta device.
        trainable: names of the parameters that would be trained; the head's shapes may still change.
    """

    info: MethodInfo
    spec: ModelSpec
    config: Any
    tokenizer: Any
    anatomy: Anatomy
    trainable: tuple[str, ...]
    notes: tuple[str, ...]


def model_spec(recipe: Recipe) -> ModelSpec:
    """Return the model block with the 4 bits that the method implies (QLoRA)."""
    if registry.info(recipe.method.name).forces_4bit and not recipe.model.load_in_4bit:
        return recipe.model.model_copy(update={"load_in_4bit": True})
    return recipe.model


def outline(loaded: LoadedRecipe, device: torch.device) -> Outline:
    """Check everything that config, tokenizer and shapes can tell; no data, no weights.

    Raises:
        UserError: every problem found, with file and line where the recipe has them.
    """
    recipe = loaded.recipe
    info = registry.info(recipe.method.name)
    spec = model_spec(recipe)
    config = load_config(spec)
    tokenizer, notes = load_tokenizer_with_notes(spec, recipe.task)
    training = recipe.training
    problems = [*_method_problems(info, recipe, spec), *optimizer_problems(training, device.type)]
    problems += [*tracker_problems(training.report_to), *hub_problems(training.push_to_hub)]
    problems += compile_problems(training.torch_compile, device.type)
    with collecting(problems):
        decide_half_precision(recipe, device)
    attached: list[tuple[Anatomy, Attachment]] = []
    with collecting(problems):
        meta = build_meta(config, recipe.task, spec.num_labels or 2)
        if recipe.training.gradient_checkpointing is True:
            with collecting(problems):
                enable_checkpointing(meta)
        anatomy = read_anatomy(meta, recipe.model.anatomy)
        attachment = apply_method(meta, anatomy, recipe.method, train_head=recipe.training.train_head)
        parameter_groups(attachment.trainable_parameters(), recipe.training, 1.0)  # for lr_groups that match nothing
        attached.append((anatomy, attachment))
    if problems:
        raise UserError(located(loaded, problems))
    anatomy, attachment = attached[0]
    notes = [*notes, *anatomy.notes, *(f"{path} is left out: {why}" for path, why in anatomy.left_out)]
    notes += [NOTE] if training.torch_compile else []
    return Outline(info, spec, config, tokenizer, anatomy, tuple(attachment.trainable_parameters()), tuple(notes))


class collecting:  # reads as a statement: `with collecting(problems):`
    """A context that puts the problems of a `UserError` into a list instead of raising it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.problems.extend(error.problems)
            return True
        return False


def located(loaded: LoadedRecipe, problems: Iterable[Problem]) -> list[Problem]:
    """Return problems with the recipe's file and line where they name a key and no place."""
    return [
        loaded.problem(p.key, p.message, p.suggestion) if p.key and p.file is None else p
        for p in dict.fromkeys(problems)
    ]


def _method_problems(info: MethodInfo, recipe: Recipe, spec: ModelSpec) -> list[Problem]:
    problems = []
    if info.tasks and recipe.task not in info.tasks:
        choice = f"it serves {', '.join(sorted(info.tasks))}"
        problems.append(Problem(f"{info.name} does not serve {recipe.task}", key="method.name", suggestion=choice))
    if not info.quantised_base and (spec.load_in_4bit or spec.load_in_8bit):
        remedy = "remove model.load_in_4bit, or choose a method that works on a quantised base"
        problems.append(Problem(f"{info.name} cannot train a quantised base", key="method.name", suggestion=remedy))
    return problems


def decide_half_precision(recipe: Recipe, device: torch.device) -> None:
    """Refuse a half precision that the device lacks, without a probe."""
    if recipe.training.fp16:
        decide_precision(recipe.training, torch.float32, device, width=1)


def positions_left(anatomy: Anatomy, params: MethodParams) -> int | None:
    """Return how many positions of the model a row can take beside the method's own; None without such a limit."""
    if anatomy.max_positions is None:
        return None
    return anatomy.max_positions - registry.method(params.name).positions_taken(anatomy, params)
