"""Which servers load a run's adapter as it is: rules in `servers.json`, each with its source and the date of reading.

The rules for vLLM and llama.cpp were read in their sources; no adapter was loaded there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from peftcli.adapters.adapter_files import CONFIG


@cache
def server_rules() -> dict[str, dict[str, Any]]:
    """Return the rules by the server's name."""
    text = Path(__file__).with_name("servers.json").read_text(encoding="utf-8")
    rules: dict[str, dict[str, Any]] = json.loads(text)
    return rules


def servers_of(run: Path) -> list[str]:
    """Return the servers that load what a run left; a complete model is loaded wherever its base is.

    A method that is not here can be merged, if it merges: a merged model is a complete model.
    """
    if (run / "model").is_dir():
        return list(server_rules())
    try:
        config = json.loads((run / "adapter" / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        return []  # this project's own format
    return [name for name, rule in server_rules().items() if _loads(rule, config)]


def _loads(rule: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    rank = config.get("r")
    greatest = rule["greatest_rank"]
    return (
        bool({"*", config["peft_type"]} & set(rule["peft_types"]))
        and bool({"*", config.get("task_type")} & set(rule["task_types"]))
        and not any(config.get(key) for key in rule["refused_if_set"])
        and config.get("bias", "none") in rule["bias"]
        and (greatest is None or not isinstance(rank, int) or rank <= greatest)
    )
