"""The JSON files of AdapterHub's library: the kinds of their values are checked before anything reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.typed_record import record_of

HEAD_CONFIG = "head_config.json"
_AGAIN = "copy the adapter again"
_Count = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True)
class _HubConfig:
    """adapter_config.json."""

    config: dict[str, Any]
    model_type: str
    model_class: str
    name: str
    model_name: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class _Lora:
    """The inner `config` of a LoRA."""

    r: _Count
    architecture: str | None = None
    alpha: float = 1.0
    dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    attn_matrices: list[str] | None = None


@dataclass(frozen=True)
class _Bottleneck:
    """The inner `config` of a bottleneck adapter or Compacter."""

    non_linearity: str
    mh_adapter: bool | None = None
    output_adapter: bool | None = None
    cross_adapter: bool | None = None
    dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    scaling: float | str = 1.0
    is_parallel: bool | None = None
    phm_layer: bool | None = None
    phm_dim: _Count = 4
    phm_rank: _Count = 1
    original_ln_before: bool | None = None


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
    outer = record_of(_HubConfig, config, path, suggestion=_AGAIN)
    architecture = outer.config.get("architecture")
    kind = {None: _Bottleneck, "lora": _Lora}.get(architecture) if isinstance(architecture, str | None) else _Lora
    if kind is not None:  # others are refused by name
        record_of(kind, outer.config, path, key="config", suggestion=_AGAIN)
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
