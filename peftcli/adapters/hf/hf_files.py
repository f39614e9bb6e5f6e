"""What HF peft's files have in common for every method: config keys, key prefixes, modules that are saved whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.format import AdapterMeta, SavedTarget
from peftcli.adapters.model_card import Use
from peftcli.errors import UserError
from peftcli.tasks.task_table import TASKS, task_info

PREFIX = "base_model.model."
"""Before every key of a method that changes modules."""
PROMPT_PREFIX = "base_model."
"""Before the head's keys of a method that only lengthens the input: HF peft wraps the model once less."""


def common_config(meta: AdapterMeta, kind: str) -> dict[str, Any]:
    """Return the keys of adapter_config.json that every kind of adapter has.

    Args:
        kind: HF's `peft_type`.
    """
    return {
        "peft_type": kind,
        "task_type": task_info(meta.task).hf_task_type,
        "base_model_name_or_path": meta.base.get("name"),
        "revision": meta.base.get("revision"),
        "inference_mode": True,
        "modules_to_save": saved_whole(meta) or None,
    }


def hf_use(meta: AdapterMeta, note: str | None) -> Use:
    """Return how HF peft uses an adapter's files, for the model card.

    Args:
        meta: the adapter's record.
        note: what a user of HF peft should know.
    """
    base = str(meta.base.get("name") or "unknown")
    task = TASKS.get(meta.task)
    auto = meta.base.get("loader") or (task.info.auto_class if task is not None else "AutoModel")
    names = list((meta.labels or {}).get("names", ()))
    extra = f", num_labels={len(names)}" if names else ""
    code = (
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("{base}"{extra})',
        'model = PeftModel.from_pretrained(model, "path/to/this/directory")',
    )
    return Use("peft", code, note)


def saved_whole(meta: AdapterMeta) -> list[str]:
    """Return the modules whose own weights are in the file: the head's, and `modules_to_save`."""
    return [*meta.head, *(path for path in meta.modules_to_save if path not in meta.head)]


def targeted_config(meta: AdapterMeta) -> dict[str, Any]:
    """Return the keys that say which modules are changed, and how the base stores their weights."""
    return {
        "target_modules": list(meta.target_names),
        "fan_in_fan_out": any(target.kind == "conv1d" for target in meta.targets),
    }


def sliced(meta: AdapterMeta) -> str | None:
    """Return why HF peft cannot hold these targets as they are (it has no slices of fused projections), or None."""
    fused = sorted({target.role or target.key for target in meta.targets if target.slice})
    return f"{', '.join(fused)} are slices of a fused projection" if fused else None


def transposed(meta: AdapterMeta) -> str | None:
    """Return why a method of HF peft that takes no Conv1D cannot hold these targets, or None."""
    names = sorted({target.role or target.key for target in meta.targets if target.kind == "conv1d"})
    return f"{', '.join(names)} are transformers' Conv1D, which this method of HF peft does not take" if names else None


def add_prefix(state: Mapping[str, Tensor], prefix: str = PREFIX) -> dict[str, Tensor]:
    """Return the tensors by HF peft's keys, where nothing else differs."""
    return {prefix + key: tensor for key, tensor in state.items()}


def drop_prefix(tensors: Mapping[str, Tensor], prefix: str = PREFIX) -> dict[str, Tensor]:
    """Return the tensors by the base model's keys: undo `add_prefix`.

    Raises:
        UserError: a key without the prefix.
    """
    for key in tensors:
        if not key.startswith(prefix):
            raise UserError(f"the adapter's key {key!r} does not begin with {prefix!r}: not a file of HF peft's layout")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def own_keys(tensors: Mapping[str, Tensor], where: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return HF peft's tensors by our keys, and notes on what was left out."""
    state: dict[str, Tensor] = {}
    notes = []
    for name, tensor in drop_prefix(tensors).items():
        if ".original_module." in name or ".modules_to_save." in name:
            continue  # `bias: all` makes HF peft write the wrapper's copies too; the module's own key is there as well
        if name.endswith(".base_layer.weight"):
            notes.append(f"{where}: left out {name}, a copy of the base's own embedding")
        else:
            state[name.replace(".base_layer.", ".")] = tensor
    return state, notes


def whole_modules(keys: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Return the modules that HF peft saved whole: the outermost whose path ends with one of the config's names.

    Raises:
        UserError: a key belongs to no such module, so it would never be used.
    """
    endings = (*(config.get("modules_to_save") or ()), "classifier", "score")
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")[:-1]
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        whole = next((path for path in paths if path.endswith(endings)), None)
        if whole is None:
            raise UserError(
                f"unexpected {key}: it belongs neither to the method nor to a module of modules_to_save",
                suggestion="save or download the adapter again",
            )
        found[whole] = None
    return list(found)


def keys_of(state: Mapping[str, Tensor], suffixes: Iterable[str], where: Path) -> dict[str, None]:
    """Return the modules that have a tensor of every suffix, such as `lora_A`, in order.

    Raises:
        UserError: a module lacks one of them, or there is no such module.
    """
    suffixes = tuple(suffixes)
    found = {key.removesuffix(f".{s}"): None for key in state for s in suffixes if key.endswith(f".{s}")}
    missing = [f"{key}.{suffix}" for key in found for suffix in suffixes if f"{key}.{suffix}" not in state]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing[:3])}", suggestion="save or download the adapter again")
    if not found:
        raise UserError(f"{where} holds not a single {suffixes[0]}")
    return found


def foreign_record(
    config: Mapping[str, Any], where: Path, *, targets: tuple[SavedTarget, ...] = (), whole: Iterable[str] = ()
) -> AdapterMeta:
    """Return the record of an adapter that HF peft saved.

    Args:
        targets: the modules that it changes.
        whole: the modules that were saved whole.
    """
    return AdapterMeta(
        task=task_of(config, where),
        base={"name": config.get("base_model_name_or_path"), "revision": config.get("revision")},
        targets=targets,
        target_names=tuple(target.module for target in targets if target.kind != "experts"),
        target_parameters=tuple(target.module for target in targets if target.kind == "experts"),
        modules_to_save=tuple(whole),
        versions={"peft": str(config.get("peft_version", "unknown"))},
    )


def foreign_targets(
    config: Mapping[str, Any], keys: Iterable[str], *, tables: Iterable[str] = ()
) -> tuple[SavedTarget, ...]:
    """Return the records of whole modules, under their paths; `tables` are those that are embeddings."""
    kind = "conv1d" if config.get("fan_in_fan_out") else "linear"
    embeddings = set(tables)
    return tuple(SavedTarget(key, key, None, "embedding" if key in embeddings else kind) for key in keys)


def task_of(config: Mapping[str, Any], where: Path) -> str:
    """Return our name of HF's `task_type`.

    Raises:
        UserError: it has none that this project trains.
    """
    for name, task in TASKS.items():
        if task.info.hf_task_type == config.get("task_type"):
            return name
    kinds = dict.fromkeys(task.info.hf_task_type for task in TASKS.values())
    raise UserError(
        f"{where / CONFIG}: task_type is {config.get('task_type')!r}",
        suggestion=f"write one of {', '.join(kinds)} into it",
    )


def refuse_options(config: Mapping[str, Any], names: Iterable[str], where: Path) -> None:
    """Refuse options of HF peft that are set and have no counterpart here.

    Raises:
        UserError: names them.
    """
    used = [name for name in names if config.get(name) not in (None, False, "none", [], {})]
    if used:
        raise UserError(f"{where / CONFIG} uses {', '.join(used)} of HF peft, which has no counterpart here")


def first_match(patterns: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return the value of the first pattern of a config that names a module, by HF peft's rule, or the default."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", key)), default)


def number(config: Mapping[str, Any], name: str) -> int:
    """Return a whole number of adapter_config.json.

    Raises:
        UserError: it is not there, or is none.
    """
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"adapter_config.json: {name} is {value!r}, expected a whole number")
    return value
