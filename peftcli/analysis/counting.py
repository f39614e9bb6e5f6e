"""Count what a method trains, saves and adds: the code that trains attaches it to the model on the meta device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from peftcli.errors import UserError
from peftcli.layers.added_modules import is_added
from peftcli.layers.quantised.quantised_weights import logical_numbers, logical_numel
from peftcli.models.load.load_model import load_config
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import MethodRegistry, registry
from peftcli.protocol.rows_beside.added_rows import WantedRows, counted_rows
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import ModelSpec, Recipe, TaskName


@dataclass(frozen=True)
class Counts:
    """Counts of numbers (not bytes). Shared and tied tensors count once, frozen random ones (VeRA's) not at all.

    Args:
        method: its name.
        params: its hyper-parameters, as plain data.
        trainable: what training moves, the head included.
        saved: what the adapter file holds, the head left out.
        head: of the task head beside it.
        total: the base model and everything added to it.
        percent: 100 * trainable / total.
        reduction: what full fine-tuning would train, over `trainable`.
        by_module: trainable numbers by module path, block numbers replaced by `*`.
    """

    method: str
    params: dict[str, Any]
    trainable: int
    saved: int
    head: int
    total: int
    percent: float
    reduction: float
    by_module: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `count-params --json` lists."""
        return asdict(self)


def count_params(recipe: Recipe, *, methods: MethodRegistry = registry) -> Counts:
    """Count for a recipe; only model, task and method are read, and of the model only its config.

    Raises:
        UserError: the model has no config, or the method does not fit it.
    """
    return count_method(
        load_config(recipe.model),
        recipe.task,
        recipe.method,
        num_labels=recipe.model.num_labels or 2,
        train_head=recipe.training.train_head,
        new_tokens=recipe.model.new_tokens if recipe.model.trains_new_tokens else (),
        vocabulary=_vocabulary(recipe.model),
        anatomy_overrides=recipe.model.anatomy,
        trust_remote_code=recipe.model.trust_remote_code,
        methods=methods,
    )


def count_method(
    config: PretrainedConfig,
    task: TaskName,
    params: MethodParams,
    *,
    num_labels: int = 2,
    train_head: bool = True,
    new_tokens: Sequence[str] = (),
    vocabulary: int = 0,
    anatomy_overrides: dict[str, str | list[str]] | None = None,
    trust_remote_code: bool = False,
    methods: MethodRegistry = registry,
) -> Counts:
    """Count one method on one model, from the model's config.

    Args:
        config: of the base; left as it is.
        task: decides the head.
        params: the method and its hyper-parameters.
        num_labels: outputs of a classification head.
        train_head: as in `training`.
        new_tokens: whose rows are trained.
        vocabulary: of the tokenizer with its new tokens; a smaller table grows to that.
        anatomy_overrides: `model.anatomy` of the recipe.
        trust_remote_code: run the code that came with the model.

    Raises:
        UserError: the model cannot do the task, or the method does not fit it.
    """
    model = build_meta(config, task, num_labels, trust_remote_code=trust_remote_code)
    size = len(model.get_input_embeddings().weight) if new_tokens or vocabulary else 0
    if vocabulary > size:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    anatomy = read_anatomy(model, anatomy_overrides)
    named = counted_rows(params, model).chosen
    rows = WantedRows(named, dict(enumerate(new_tokens, max(0, max(size, vocabulary) - len(new_tokens)))))
    attachment = apply_method(model, anatomy, params, train_head=train_head, rows=rows, methods=methods)
    return count_attachment(attachment, params)


def _vocabulary(spec: ModelSpec) -> int:
    """Return the size of the vocabulary with the new tokens; without a tokenizer, the table is taken to have room."""
    if not spec.new_tokens:
        return 0
    try:
        return len(load_tokenizer(spec))
    except UserError:
        return 0


def count_attachment(attachment: Attachment, params: MethodParams) -> Counts:
    """Count what is attached to a model, live or on meta; a quantised weight counts the numbers that it stands for."""
    parameters = dict(attachment.model.named_parameters())
    numbers = logical_numbers(attachment.model)
    base = sum(size for name, size in numbers.items() if not is_added(name))
    total = sum(numbers.values())  # with what is added and frozen, such as LoRA-FA's A
    trained = attachment.trainable_parameters()
    trainable = _size(trained.values())
    return Counts(
        method=params.name,
        params=params.model_dump(mode="json", exclude={"name"}),
        trainable=trainable,
        saved=attachment.saved_size(),
        head=_size(parameters[name] for name in attachment.head if name in parameters),
        total=total,
        percent=100.0 * trainable / total,
        reduction=base / trainable if trainable else 0.0,
        by_module=_by_module(trained),
    )


def _size(tensors: Iterable[Tensor]) -> int:
    """Return how many numbers there are in distinct tensors."""
    return sum(logical_numel(tensor) for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _by_module(trained: dict[str, Any]) -> dict[str, int]:
    """Group by module path: a site's tensors by their key, base parameters by their module."""
    groups: dict[str, int] = {}
    for name, parameter in trained.items():
        path = re.sub(r"\.(lora|initial|peft)_\w+(\.weight)?$|\.[^.]*$", "", name)
        group = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)
        groups[group] = groups.get(group, 0) + parameter.numel()
    return groups
