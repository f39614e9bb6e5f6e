"""A saved adapter: the names of its files, and the record of how it was made and for which base model.

adapter/
  adapter_config.json         HF peft's, where HF has the method; else {"peft_type": "PEFTCLI", ...}
  adapter_model.safetensors   HF peft's keys, or ours
  peftcli.json                the method's parameters and this module's `AdapterMeta`; HF peft ignores the file
  README.md                   model card

No torch here: `peft validate` and `peft methods` may look at a saved adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.adapters.adapter_files import json_ready
from peftcli.data.store.labels import LabelSpec
from peftcli.errors import UserError
from peftcli.layers.added_modules import is_added
from peftcli.models.load.identity import BaseIdentity
from peftcli.typed_record import record_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment
    from peftcli.recipe.method_params import MethodParams

OWN_TYPE = "PEFTCLI"
"""`peft_type` of a layout that only this project reads."""
OWN_LAYOUT = "peftcli"
"""How peftcli.json calls that layout; other layouts are those of libraries (`Library.run_layout`)."""
FORMAT_VERSION = 1
"""Raised when a file of an earlier version would be read wrongly."""


@dataclass(frozen=True)
class SavedTarget:
    """One projection that the method changed.

    Args:
        key: path that its tensors are saved below.
        module: path of the module; of kind experts, of the 3-D parameter.
        role: its role, if it has one.
        kind: linear, conv1d, embedding or experts.
        slice: groups, width, start and size of a fused module's features, or None for a whole module.
        experts: how many a 3-D parameter holds.
    """

    key: str
    module: str
    role: str | None
    kind: str
    slice: tuple[int, int, int, int] | None = None
    experts: int | None = None


@dataclass(frozen=True)
class AdapterMeta:
    """Everything about a saved adapter but its tensors and hyper-parameters.

    Args:
        task: as in the recipe.
        family: `config.model_type` of the base; None if the adapter came from elsewhere.
        base: `models.identity.BaseIdentity.as_dict()`; at least `name`.
        labels: `data.store.labels.LabelSpec.as_dict()`, for classification.
        targets: the projections that the method chose.
        target_names: the shortest module names that match exactly these targets in the model, for HF peft's config.
        target_parameters: likewise the shortest names of the 3-D parameters of experts among them.
        head: paths of the task head's modules.
        modules_to_save: full paths of the modules trained whole beside the method.
        buffers: full names of the buffers that those modules and the head have; their values stay the base's.
        token_rows: numbers of the rows of the vocabulary's tables that are trained, by the table's path.
        versions: of the libraries that trained it.
        places: keys below which the method's parts are saved, in the model's order; a flat file is split by them.
        stacks: which of encoder and decoder the base has.
        prefix_route: `Anatomy.prefix_route` of the base.
        texts: `deliverables.learnt_texts.LearntTexts.as_dict()`: chat template and ends of an answer; None where it is
            not recorded.
    """

    task: str
    family: str | None = None
    base: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] | None = None
    targets: tuple[SavedTarget, ...] = ()
    target_names: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    token_rows: Mapping[str, list[int]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    prefix_route: str | None = None
    texts: Mapping[str, Any] | None = None

    @property
    def label_spec(self) -> LabelSpec | None:
        """The labels of a classification head."""
        return None if self.labels is None else LabelSpec.from_dict(self.labels)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as peftcli.json holds it."""
        data: dict[str, Any] = json_ready(asdict(self))
        return data


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from disk.

    Args:
        params: the method's hyper-parameters.
        state: what `Attachment.load_state_dict` takes, on the CPU.
        meta: how it was made, and for which base.
        notes: what was left out or assumed while reading another library's files.
        recorded: whether a hash beside the weights was compared with them.
    """

    params: MethodParams
    state: dict[str, Tensor]
    meta: AdapterMeta
    notes: tuple[str, ...] = ()
    recorded: bool = False


def describe(
    attachment: Attachment,
    anatomy: Anatomy,
    *,
    task: str,
    base: BaseIdentity,
    labels: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    texts: Mapping[str, Any] | None = None,
) -> AdapterMeta:
    """Return the record of a live attachment.

    Args:
        attachment: as `apply_method` returned it.
        anatomy: of its model.
        task: as in the recipe.
        base: the base's identity.
        labels: `LabelSpec.as_dict()`.
        versions: of the libraries.
        texts: `LearntTexts.as_dict()`.
    """
    whole = tuple(dict.fromkeys(name.rpartition(".")[0] for name in attachment.to_save))
    return AdapterMeta(
        task=task,
        family=anatomy.family,
        base=base.as_dict(),
        labels=None if labels is None else dict(labels),
        **places_of(attachment),
        head=tuple(anatomy.head),
        modules_to_save=whole,
        buffers=tuple(_buffers_below(attachment.model, (*anatomy.head, *whole))),
        token_rows=attachment.row_numbers(),
        versions=dict(versions or {}),
        stacks=tuple(stack for stack, blocks in anatomy.layers.items() if blocks),
        prefix_route=anatomy.prefix_route,
        texts=None if texts is None else dict(texts),
    )


def places_of(attachment: Attachment) -> dict[str, Any]:
    """Return `targets`, their shortest names, and `places` of an attachment's record."""
    targets = tuple(
        SavedTarget(
            target.key,
            target.place,
            target.role,
            target.kind,
            (target.slice.groups, target.slice.width, target.slice.start, target.slice.size) if target.slice else None,
            target.experts.experts if target.experts else None,
        )
        for target in attachment.targets
    )
    everything = [name for name, _ in attachment.model.named_modules() if not is_added(name)]
    weights = [name for name, _ in attachment.model.named_parameters() if not is_added(name)]
    return {
        "targets": targets,
        "target_names": tuple(shortest_names({t.module for t in targets if t.kind != "experts"}, everything)),
        "target_parameters": tuple(shortest_names({t.module for t in targets if t.kind == "experts"}, weights)),
        "places": tuple(placed.key for placed in attachment.placed),
    }


def _buffers_below(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Return the names of the buffers at or below the modules that a model's state_dict holds, each once."""
    names = [f"{path}.{name}" for path in paths for name in model.get_submodule(path).state_dict()]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in dict.fromkeys(names) if name not in parameters and not is_added(name)]


def shortest_names(modules: set[str], everything: list[str]) -> list[str]:
    """Return path endings that match exactly `modules` among `everything`, at dot boundaries; else full paths."""
    for parts in (1, 2):
        endings = sorted({".".join(module.split(".")[-parts:]) for module in modules})
        suffixes = tuple(f".{ending}" for ending in endings)
        if {name for name in everything if f".{name}".endswith(suffixes)} == modules:
            return endings
    return sorted(modules)


def recorded_params(params: MethodParams, rows: Mapping[str, list[int]]) -> MethodParams:
    """Return a recipe's hyper-parameters as an adapter keeps them: with the rows of tokens by table and number.

    Args:
        params: of the recipe, which may name tokens, or only add them to the vocabulary.
        rows: `AdapterMeta.token_rows`.
    """
    return params.model_copy(update={"trainable_token_indices": dict(rows)}) if rows else params


def base_of(meta: AdapterMeta) -> BaseIdentity | None:
    """Return the base that an adapter was trained on; None where its files are not known (an imported adapter)."""
    try:
        return record_of(BaseIdentity, meta.base, Path())
    except UserError:
        return None


def check_base(meta: AdapterMeta, base: BaseIdentity, where: Path | str) -> None:
    """Refuse a base that the adapter was not made for, before its weights are read.

    Args:
        meta: of the saved adapter.
        base: what is about to be loaded.
        where: the adapter, for the message.

    Raises:
        UserError: another architecture, width, depth or vocabulary; names each with both values.
    """
    if "model_type" not in meta.base:
        return  # imported from another library: its shapes are checked when the tensors are put in place
    wrong = BaseIdentity.from_dict(meta.base).misfits(base)
    if wrong:
        raise UserError(
            f"the adapter {where} does not fit {base.name}: {'; '.join(wrong)}",
            suggestion=f"it was trained on {meta.base['name']}",
        )
