"""The JSON files of AdapterHub's library: the kinds of their values are checked before anything reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.adapters.sidecar import check_kinds
from peftcli.typed_record import record_of

HEAD_CONFIG = "head_config.json"
_AGAIN = "copy the adapter again"
_Count = Annotated[int, Field(ge=1, lt=2**31)]


_OUTER: dict[str, Any] = {
    "config": dict[str, Any],
    "model_type": str,
    "model_class": str,
    "name": str,
    "model_name": str | None,
    "version": str | None,
}
"""adapter_config.json."""


_LORA: dict[str, Any] = {
    "r": _Count,
    "architecture": str | None,
    "alpha": float,
    "dropout": Annotated[float, Field(ge=0, le=1)] | None,
    "attn_matrices": list[str] | None,
}
"""The inner `config` of a LoRA."""


_BOTTLENECK: dict[str, Any] = {
    "non_linearity": str,
    "mh_adapter": bool | None,
    "output_adapter": bool | None,
    "cross_adapter": bool | None,
    "dropout": Annotated[float, Field(ge=0, le=1)] | None,
    "scaling": float | str,
    "is_parallel": bool | None,
    "phm_layer": bool | None,
    "phm_dim": _Count,
    "phm_rank": _Count,
    "original_ln_before": bool | None,
}
"""The inner `config` of a bottleneck adapter or Compacter."""


@dataclass(frozen=True)
class _Head:
    """head_config.json."""

    label2id: dict[str, int] | None = None


def read_hub_config(directory: Path) -> dict[str, Any]:
    """Return adapter_config.json, with every value of the kind that the library writes.

    Raises:
        UserError: it is missing or damaged, or a value is of another kind; names the file and the key.
    """
    path = directory / CONFIG
    config = read_json(path)
    check_kinds(_OUTER, ("config", "model_type", "model_class", "name"), config, path)
    inner = config["config"]
    architecture = inner.get("architecture")
    if architecture is None:
        check_kinds(_BOTTLENECK, ("non_linearity",), inner, path, key="config")
    elif architecture == "lora" or not isinstance(architecture, str):  # others are refused by name
        check_kinds(_LORA, ("r",), inner, path, key="config")
    return config


def read_labels(directory: Path) -> list[str]:
    """Return the names of the labels in head_config.json, by their numbers; none where there is no such file.

    Raises:
        UserError: it is damaged, or a value is of another kind; names the file and the key.
    """
    path = directory / HEAD_CONFIG
    if not path.is_file():
        return []
    numbers = record_of(_Head, read_json(path), path, suggestion=_AGAIN).label2id or {}
    return sorted(numbers, key=lambda name: numbers[name])
