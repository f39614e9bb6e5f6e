"""The base model of an adapter that is moved between formats: its shapes (meta device), anatomy and identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta, check_base, describe
from peftcli.errors import Problem, UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.load.model_files import find_source
from peftcli.protocol.apply_method import apply_method
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import ModelSpec, TaskName
from peftcli.tasks.task_table import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight", "classification_head.out_proj.weight")


@dataclass(frozen=True)
class Base:
    """One base model, without weights.

    Args:
        model: the task model on the meta device.
        anatomy: its roles.
        identity: what an adapter remembers of it.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    identity: BaseIdentity


@dataclass(frozen=True)
class BaseName:
    """The name of a base model, which is read once the task is known.

    Args:
        name: hub id or path; None if nobody said.
        revision: of the hub.
        trust_code: let the Python code that comes with it run, as the person who types the command says.
        file: which should name it, for the message if nobody did.
    """

    name: str | None
    revision: str | None = None
    trust_code: bool = False
    file: Path | None = None

    def read(self, task: str, tensors: Mapping[str, Tensor]) -> Base:
        """Return the base model on the meta device.

        Args:
            task: as in a recipe.
            tensors: of the adapter; a classification head among them tells the number of labels.

        Raises:
            UserError: nobody named it, or its config cannot be read.
        """
        from peftcli.models.load.load_model import (  # transformers: seconds, rarely needed
            identify,
            load_config,
        )
        from peftcli.models.load.meta_model import build_meta
        from peftcli.models.read_anatomy import read_anatomy

        if self.name is None:
            file = None if self.file is None else str(self.file)
            reason = "the adapter does not name its base model"
            raise UserError(Problem(reason, file=file, suggestion="name it with --base MODEL"))
        spec = self._spec(self.name)
        labels = _number_of_labels(tensors)
        model = build_meta(load_config(spec), known_task(task), labels, trust_remote_code=self.trust_code)
        dtype = getattr(model.config, "dtype", None) or torch.float32  # the checkpoint's: nobody recorded another
        identity = identify(find_source(self.name), model, dtype, None, spec)
        return Base(model, read_anatomy(model), identity)

    def config(self) -> dict[str, Any]:
        """Return the base's config as plain data; empty where nobody named the base.

        Raises:
            UserError: it cannot be read.
        """
        from peftcli.models.load.load_model import load_config

        if self.name is None:
            return {}
        found: dict[str, Any] = load_config(self._spec(self.name)).to_dict()
        return found

    def _spec(self, name: str) -> ModelSpec:
        return ModelSpec(name_or_path=name, revision=self.revision, trust_remote_code=self.trust_code)


def check_config(meta: AdapterMeta, spec: ModelSpec, where: Path) -> None:
    """Refuse a base that the adapter was not made for, by its config alone: no weights are read.

    Args:
        meta: of the saved adapter.
        spec: the base.
        where: the adapter, for the message.

    Raises:
        UserError: another architecture, width, depth or vocabulary.
    """
    from peftcli.models.load.load_model import load_config, shape_of

    config = load_config(spec)
    name, part = spec.name_or_path, config.get_text_config()
    # a checkpoint with towers may have been loaded by the class of its text part alone
    alone = meta.base.get("model_type") == part.model_type
    kind = str(part.model_type if alone else config.model_type)
    check_base(meta, BaseIdentity(name, None, "", None, "", kind, {}, shape_of(config)), where)


def known_task(task: str) -> TaskName:
    """Return a task's name if it is one.

    Raises:
        UserError: it is none.
    """
    if task not in TASKS:
        raise UserError(f"the adapter's task {task!r} is none of {', '.join(TASKS)}")
    return task


def _number_of_labels(tensors: Mapping[str, Tensor]) -> int:
    return next((len(tensor) for key, tensor in tensors.items() if key.endswith(_HEADS)), 2)


def fit(base: Base, params: MethodParams, state: Mapping[str, Tensor], task: str, where: Path) -> AdapterMeta:
    """Return the record of an adapter on its base; no weights are loaded.

    Args:
        base: its model is changed: use it for one adapter only.
        params: the method's hyper-parameters.
        state: the adapter's tensors by our keys.
        task: as in a recipe.
        where: the adapter, for the message.

    Raises:
        UserError: the tensors are not exactly those that the method adds to this base.
    """
    try:
        attachment = apply_method(base.model, base.anatomy, params)
        attachment.load_state_dict(state)
    except UserError as error:
        raise UserError(
            f"{where} does not fit {base.identity.name}: {error.problems[0].message}",
            suggestion=error.problems[0].suggestion
            if "tied" in error.problems[0].message
            else "name the model that it was trained on with --base MODEL",
        ) from None
    return describe(attachment, base.anatomy, task=task, base=base.identity)
