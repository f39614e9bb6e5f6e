"""AdapterHub's files (library `adapters`, 1.3): serial and parallel bottlenecks, Compacter and LoRA, as safetensors.

adapter_config.json        {"config": {...}, "model_type", "model_class", "name", "version", ...}
adapter.safetensors        keys hold the adapter's name and, unlike HF peft's, no wrapper's prefix
head_config.json,          of a task head, by the model's own names
model_head.safetensors

Loading them there: `model.load_adapter(DIR, use_safetensors=True)`. That library pins an older transformers, so that
the test which loads exports with it needs an environment of its own, and is marked slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.adapter_files import CONFIG, read_tensors, write_json, write_tensors
from peftcli.adapters.adapterhub.hub_config import HEAD_CONFIG, read_hub_config, read_labels
from peftcli.adapters.adapterhub.hub_format import HUB_FORMATS
from peftcli.adapters.adapterhub.hub_places import NAME, VERSION
from peftcli.adapters.base_shape import Base, BaseName, fit
from peftcli.adapters.format import AdapterMeta, SavedAdapter, check_base
from peftcli.errors import UserError
from peftcli.tasks.task_table import TASKS, task_info

WEIGHTS = "adapter.safetensors"
HEAD_WEIGHTS = "model_head.safetensors"


def write(saved: SavedAdapter, source: Path, output: Path, base: str | None = None) -> tuple[str, ...]:
    """Write a saved adapter for AdapterHub's library.

    Args:
        saved: the adapter, of a method in `HUB_FORMATS`.
        source: its directory, for messages.
        output: an empty directory.
        base: where the base lies now; by default where the adapter says. Only its config is read.

    Returns:
        Notes for the user.

    Raises:
        UserError: the library cannot hold these parameters, or the base cannot be read.
    """
    params, meta = saved.params, saved.meta
    if meta.modules_to_save:
        raise UserError(f"{source}: AdapterHub's files have no place for modules_to_save", suggestion="use peft merge")
    name = BaseName(base or meta.base.get("name"), None if base else meta.base.get("revision"))
    found = name.read(meta.task, saved.state)
    check_base(meta, found.identity, source)
    head, state = _split_head(saved.state, meta)
    kind = next(known for known in HUB_FORMATS if params.name in known.methods)
    inner, tensors = kind.write(params, state, meta, found, source)
    _write_files(output, {"config": inner, **_about(found, NAME)}, tensors, _head_config(found, meta), head)
    return ("AdapterHub's library reads these files with model.load_adapter(DIR, use_safetensors=True)",)


def _split_head(state: Mapping[str, Tensor], meta: AdapterMeta) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the task head's tensors, and the others."""
    below = tuple(f"{path}." for path in meta.head)
    head = {key: tensor for key, tensor in state.items() if key.startswith(below)} if below else {}
    return head, {key: tensor for key, tensor in state.items() if key not in head}


def _about(base: Base, name: str | None) -> dict[str, Any]:
    return {
        "hidden_size": base.anatomy.hidden_size,
        "model_class": type(base.model).__name__,
        "model_name": base.identity.name,
        "model_type": base.identity.model_type,
        "name": name,
        "version": VERSION,
    }


def _head_config(base: Base, meta: AdapterMeta) -> dict[str, Any]:
    names = list((meta.labels or {}).get("names", ()))
    config: dict[str, Any] = {"config": None, "num_labels": len(names) or 1, **_about(base, None)}
    if names:
        config["label2id"] = {name: number for number, name in enumerate(names)}
    return config


def _write_files(
    out: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    head_config: dict[str, Any],
    head: Mapping[str, Tensor],
) -> None:
    write_tensors(out / WEIGHTS, tensors)
    write_json(out / CONFIG, config)
    if head:
        write_tensors(out / HEAD_WEIGHTS, head)
        write_json(out / HEAD_CONFIG, head_config)


def read(where: Path, base: BaseName) -> SavedAdapter:
    """Read what AdapterHub's library saved with `use_safetensors=True`.

    Args:
        where: its directory.
        base: the base model: the keys name places that only its anatomy turns into modules.

    Raises:
        UserError: pickled weights, an architecture or option that has no counterpart here, or a base that does not fit.
    """
    config = read_hub_config(where)
    architecture = config["config"].get("architecture")
    kind = next((known for known in HUB_FORMATS if known.architecture == architecture), None)
    if kind is None:
        raise UserError(
            f"{where} holds {architecture!r} of AdapterHub, which cannot be imported",
            suggestion="only bottleneck adapters, Compacter and LoRA can be imported",
        )
    tensors, task = _weights(where), _task(config, where)
    head, labels = _head(where)
    found = base.read(task, head)
    recorded = config.get("model_type")
    if recorded != found.identity.model_type:
        raise UserError(
            f"{where} was made for a {recorded} model, and {found.identity.name} is a {found.identity.model_type} one",
            suggestion="name its own base with --base MODEL",
        )
    params, state, notes = kind.read(config, tensors, where, found)
    state |= head
    return SavedAdapter(params, state, _labelled(fit(found, params, state, task, where), labels), notes)


def _weights(where: Path) -> dict[str, Tensor]:
    if not (where / WEIGHTS).is_file() and (where / "pytorch_adapter.bin").is_file():
        raise UserError(
            f"{where / 'pytorch_adapter.bin'} is a pickle, which can run code, and is not read",
            suggestion="save it in AdapterHub's library again, with save_adapter(DIR, NAME, use_safetensors=True)",
        )
    return read_tensors(where / WEIGHTS)


def _task(config: Mapping[str, Any], where: Path) -> str:
    kind = str(config.get("model_class"))
    for task in TASKS.values():
        if kind.endswith(task.info.adapterhub_classes):
            return task.info.name
    raise UserError(
        f"{where} was saved from a {kind}, which does not name the task, and its flexible heads have no counterpart in "
        "transformers",
        suggestion="in that library, load it into a class such as BertForSequenceClassification, and save it again",
    )


def _head(where: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the task head's tensors and its label names, where the directory has them."""
    if not (where / HEAD_WEIGHTS).is_file():
        return {}, []
    return read_tensors(where / HEAD_WEIGHTS), read_labels(where)


def _labelled(meta: AdapterMeta, names: list[str]) -> AdapterMeta:
    kind = task_info(meta.task).label_kind
    if not names or kind is None:
        return meta
    return replace(meta, labels={"problem": kind, "names": names})
