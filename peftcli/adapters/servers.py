"""Which servers load a run's adapter: rules in `servers.json`, each with its source and the date of reading.

The rules are those for the adapter as it is. `export_to` is what `peft export --to` writes for the server, and
`export_folds` are the settings that this writes in another way, so that they do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.hf.parameter_names import experts_in
from peftcli.models.anatomy import EXPERT_ROLES, EXPERTS
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_table import TASKS, task_info

if TYPE_CHECKING:
    from peftcli.adapters.format import SavedAdapter

PLAIN = "LORA"
"""HF peft's `peft_type` of a plain LoRA."""


@cache
def server_rules() -> dict[str, dict[str, Any]]:
    """Return the rules by the server's name."""
    text = Path(__file__).with_name("servers.json").read_text(encoding="utf-8")
    rules: dict[str, dict[str, Any]] = json.loads(text)
    return rules


def servers_of(run: Path) -> list[str]:
    """Return what loads what a run left; a complete model is loaded where its base and its task are.

    An adapter whose method is not here can be merged, if it merges: a merged model is a complete model.
    """
    from peftcli.adapters.format import OWN_TYPE

    if (run / "model").is_dir():
        task = _read(run / "summary.json").get("task")
        kind = task_info(task).hf_task_type if isinstance(task, str) and task in TASKS else None
        serving = [
            name
            for name, rule in server_rules().items()
            if rule["peft_types"] != ["*"] and (kind is None or kind in rule["task_types"])  # HF peft loads adapters
        ]
        return [*serving, "transformers"]
    config = _read(run / "adapter" / CONFIG)
    if not isinstance(config.get("peft_type"), str) or config["peft_type"] == OWN_TYPE:
        return []  # only this project reads it
    return [name for name, rule in server_rules().items() if _loads(rule, config)]


def _read(file: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; nothing where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def servers_to_come(params: MethodParams, task: TaskName, adapter: SavedAdapter | None = None) -> list[str]:
    """Return the servers that will load what a run trains: its adapter as it is, or what is exported for them.

    Args:
        params: of the method.
        task: of the run.
        adapter: as the run would save it now, which tells what depends on the model; None where there is no model.
    """
    info = registry.info(params.name)
    if info.hf_type is None or (adapter is not None and _held_by_nobody(adapter)):
        return []
    config = params.model_dump() | {"task_type": task_info(task).hf_task_type, "peft_type": info.hf_type}
    named = getattr(params, "target_modules", None) or ()
    if any(entry in named for entry in (*EXPERT_ROLES, EXPERTS)):
        if info.hf_type != PLAIN or config.get("use_dora"):
            return []  # HF peft has no other change of 3-D parameters than plain LoRA, so the run is in our own layout
        config["target_parameters"] = named  # what HF peft's layout calls experts, however the recipe names them
    plain = info.plain_lora
    return [name for name, rule in server_rules().items() if _loads(rule, config) or (plain and _takes(rule, config))]


def _held_by_nobody(adapter: SavedAdapter) -> bool:
    """Return whether HF peft's layout, which all servers read, holds an adapter neither as it is nor exported."""
    from peftcli.adapters.hf.hf_table import FORMATS

    reason = FORMATS[adapter.params.name].why_not_whole(adapter.params, adapter.meta, adapter.state)
    return reason is not None and not any(target.slice or target.kind == "experts" for target in adapter.meta.targets)


def served_by(params: MethodParams, task: TaskName, adapter: SavedAdapter | None = None) -> str:
    """Return for reading which servers will serve what a run of a generating task trains; see `servers_to_come`."""
    if registry.info(params.name).artifact == "model":
        return "all that load the base: a complete model is saved"
    servers = servers_to_come(params, task, adapter)
    merges = registry.method(params.name).why_not_mergeable(params) is None
    after = "after a merge all that load the base" if merges else "no other: it does not merge"
    return f"{', '.join(servers)} with the adapter; {after}" if servers else f"none with the adapter; {after}"


def _takes(rule: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether a server loads what is exported for it: a plain LoRA."""
    left = [key for key in rule["refused_if_set"] if key not in rule["export_folds"]]
    return _loads({**rule, "refused_if_set": left}, {**config, "peft_type": PLAIN})


def is_set(config: Mapping[str, Any], key: str) -> bool:
    """Tell whether a config asks for what a key stands for; weights of linears are no `target_parameters` to a server,
    which goes by the names of the tensors.
    """
    return bool(experts_in(config) if key == "target_parameters" else config.get(key))


def _loads(rule: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    greatest = rule["greatest_rank"]
    return (
        bool({"*", config["peft_type"]} & set(rule["peft_types"]))
        and bool({"*", config.get("task_type")} & set(rule["task_types"]))
        and not any(is_set(config, key) for key in rule["refused_if_set"])
        and config.get("bias", "none") in rule["bias"]
        and all(greatest is None or not isinstance(rank, int) or rank <= greatest for rank in ranks)
    )
