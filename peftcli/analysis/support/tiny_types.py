"""A tiny model of any type that transformers knows, made from the defaults of its config (tiny_types.yaml)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from peftcli.analysis.contract_models import ContractModel, bare, batch_of
from peftcli.errors import UserError
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_table import GOES_ON, task_info

MOST_PARAMETERS = 20_000_000
_LABELS = 3


@dataclass(frozen=True)
class TypeModel(ContractModel):
    """A tiny model of one type, for one task.

    Args:
        made: its config.
        asked: the task.
    """

    made: PretrainedConfig = field(default_factory=PretrainedConfig)
    asked: TaskName = GOES_ON

    def made_config(self) -> PretrainedConfig:
        """Return a copy of the config."""
        return deepcopy(self.made)

    @cached_property
    def task(self) -> TaskName:
        """The task that it was made for."""
        return self.asked


def model_types(task: TaskName) -> list[str]:
    """Return the types that transformers has a class for, for a task, in order."""
    from transformers.models.auto import modeling_auto

    return sorted(getattr(modeling_auto, f"{task_info(task).mapping}_NAMES"))


def tiny_type(model_type: str, task: TaskName) -> TypeModel:
    """Return the first tiny model of a type that runs: of several shapes of attention, what it can be built with.

    Raises:
        UserError: none runs; the reason is that of the last shape that was tried.
    """
    last = "no shape was tried"
    for shape in _keys()["shapes"]:
        try:
            config = _shrunk(AutoConfig.for_model(model_type), {**_keys()["sizes"], **shape})
            config.num_labels = _LABELS
            kind = TypeModel(model_type, {"model_type": model_type}, config, task)
            _run(kind)
        except UserError:
            raise
        except Exception as error:  # each model's code refuses sizes in its own ways
            last = first_line(error)
        else:
            return kind
    raise UserError(f"no tiny {model_type} could be built: {last[:200]}")


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a text'}"


def hyper_parameters(method: str) -> dict[str, Any]:
    """Return the hyper-parameters with which a method is tried on a tiny model."""
    return dict(_keys()["methods"].get(method, {}))


@cache
def _keys() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("tiny_types.yaml").read_text(encoding="utf-8"))
    return found


def _run(kind: TypeModel) -> None:
    """Run the bare model once, so that a shape that does not work is known."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in bare(kind, "meta").parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters are too many for a trial")
    model = bare(kind)
    with torch.no_grad():
        batch = batch_of(kind)
        if kind.rows != "pairs":
            del batch["labels"]  # what a method needs of a loss is tried with the method
        logits: Tensor = model(**batch).logits
    if not bool(logits.isfinite().all()):
        raise ValueError("its outputs are not finite")


def _shrunk(config: PretrainedConfig, sizes: Mapping[str, Any]) -> PretrainedConfig:
    """Return a config of the same class with small sizes, in the configs within it, too."""
    values = config.to_dict()
    small = {key: size for key, size in sizes.items() if key in values and _same_kind(values[key], size)}
    for key, inner in _inner(config):
        small[key] = _shrunk(inner, sizes)
    kept = {key: value for key, value in values.items() if key not in _keys()["unset"] and value is not None}
    of_type = _keys()["types"].get(config.model_type, {})
    made = {**kept, **small, **deepcopy(of_type)}
    return type(config)(**{key: value for key, value in made.items() if value is not None})


def _inner(config: PretrainedConfig) -> Iterator[tuple[str, PretrainedConfig]]:
    """Yield the configs within a config, by key."""
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig) and not key.startswith("_"):
            yield key, value


def _same_kind(value: Any, size: Any) -> bool:
    return isinstance(size, list | dict) or not isinstance(value, list | dict)
