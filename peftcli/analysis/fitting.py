"""Which methods a model can carry, found by attaching each one to the model on the meta device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from transformers import PretrainedConfig

from peftcli.analysis.support.tried_types import CELLS, TRIED, bare_effects, read_tried
from peftcli.errors import Problem, UserError
from peftcli.models.load.load_model import load_config
from peftcli.models.load.meta_model import build_meta
from peftcli.models.model_tasks import possible_tasks
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.stored_quantised import may_be_quantised, stored_packed
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.rates.default_rate import DefaultRate, default_rate, model_kind, rate_of_task
from peftcli.protocol.registry import MethodRegistry, registry
from peftcli.recipe.schema import ModelSpec, TaskName
from peftcli.tasks.task_table import TASKS


@dataclass(frozen=True)
class Fit:
    """Whether a model can carry a method with its default hyper-parameters.

    Args:
        reasons: why it cannot; empty where it can.
        notes: what it does not reach, such as `attn.q is in 15 of 60 blocks`.
    """

    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fits(
    names: Iterable[str], model: str, task: str | None = None, *, methods: MethodRegistry = registry
) -> dict[str, Fit]:
    """Return, by method, whether this model can carry it with its default hyper-parameters.

    Args:
        names: methods.
        model: hub id, directory or package:NAME/PATH; only its config is read.
        task: the task; by default the first that the model can do.

    Raises:
        UserError: there is no such model or task, or the model cannot do it.
    """
    config = load_config(ModelSpec(name_or_path=model))
    chosen = _task(config, task)
    return {name: _fit(name, config, chosen, methods) for name in names}


def rates_on(names: Iterable[str], model: str, task: str | None = None) -> dict[str, DefaultRate]:
    """Return, by method, the default learning rate on this model with default hyper-parameters.

    Raises:
        UserError: as `refusals`.
    """
    config = load_config(ModelSpec(name_or_path=model))
    chosen = _task(config, task)
    anatomy = read_anatomy(build_meta(config, chosen))
    kind, width = model_kind(anatomy), anatomy.hidden_size
    found = {name: default_rate(registry.method(name), None, kind, width) for name in names}
    return {name: rate_of_task(rate, chosen, None) for name, rate in found.items()}


@dataclass(frozen=True)
class TypeTrial:
    """What was tried of a model's type, on a tiny model with random weights.

    Args:
        sentence: what, when and with which versions, or why there is nothing.
        methods: by method its cells (`support.trials`), if it was tried.
        bare: the record of the type.
    """

    sentence: str
    methods: dict[str, dict[str, str]]
    bare: dict[str, Any]


def tried_on(model: str, task: str | None = None) -> TypeTrial:
    """Return what was tried of this model's type for a task.

    Raises:
        UserError: as `refusals`.
    """
    config = load_config(ModelSpec(name_or_path=model))
    chosen, tried = _task(config, task), read_tried()
    record = tried.record(config.model_type, chosen)
    kind = f"a {config.model_type} model"
    if record is None:
        return TypeTrial(f"tried: nothing of {kind} for {chosen}; what fits is read off its structure", {}, {})
    if record["model"] != TRIED:
        return TypeTrial(f"tried: nothing of {kind} for {chosen}: {record['model']}", {}, {})
    cells = {name: tried.cells(config.model_type, chosen, name) for name in tried.methods}
    sentence = (
        f"tried: {', '.join(CELLS)} on a tiny {config.model_type} with random weights, with transformers "
        f"{tried.transformers}, on {tried.date} (docs/models.md)"
    )
    bare = [f"{what} (by {off:.1e})" for what, off in bare_effects(record).items()]
    sentence += f"; the bare model itself changes with {' and '.join(bare)}" if bare else ""
    return TypeTrial(sentence, {name: found for name, found in cells.items() if found is not None}, record)


def _task(config: PretrainedConfig, task: str | None) -> TaskName:
    known = {name: task.info.name for name, task in TASKS.items()}
    if task is not None:
        if task not in known:
            raise UserError(Problem(f"there is no task {task!r}", suggestion=f"choose one of: {', '.join(known)}"))
        return known[task]
    possible = possible_tasks(config)
    if not possible:
        raise UserError(f"a {config.model_type} model can do none of the tasks here: {', '.join(known)}")
    return possible[0]


def _fit(name: str, config: PretrainedConfig, task: TaskName, methods: MethodRegistry) -> Fit:
    info = methods.info(name)
    if info.tasks and task not in info.tasks:
        return Fit((f"it serves {', '.join(sorted(info.tasks))}, not {task}",))
    if stored_packed(config) and not info.quantised_base:
        return Fit(("it cannot train a quantised base, and this checkpoint is stored quantised",))
    if info.forces_4bit and not may_be_quantised(config):
        return Fit(("it quantises its base to 4 bits, and this checkpoint is stored quantised",))
    try:
        params = info.params.model_validate({})
    except ValidationError:
        return Fit()  # a method without complete defaults, such as a composition, fits where its parts do
    model = build_meta(config, task)
    try:
        attachment = apply_method(model, read_anatomy(model), params, methods=methods)
    except UserError as error:
        return Fit(tuple(problem.message for problem in error.problems))
    return Fit(notes=tuple(attachment.notes))
