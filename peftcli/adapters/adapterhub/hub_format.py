"""The methods of one kind in AdapterHub's format: its config and its tensors' names, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.adapterhub.bottleneck_files import read_bottlenecks, write_bottlenecks
from peftcli.adapters.adapterhub.lora import read_lora, write_lora
from peftcli.adapters.base_shape import Base
from peftcli.adapters.format import AdapterMeta
from peftcli.recipe.method_params import MethodParams

State = dict[str, Tensor]


@dataclass(frozen=True)
class HubFormat:
    """One kind of adapter of AdapterHub's library.

    Args:
        architecture: what its config says under that name.
        methods: ours that it holds.
        write: its inner config and tensors, of an adapter without its head, the record, the base and the directory.
        read: parameters, tensors by our keys and notes, of adapter_config.json, tensors, the directory and the base.
    """

    architecture: str | None
    methods: tuple[str, ...]
    write: Callable[[MethodParams, Mapping[str, Tensor], AdapterMeta, Base, Path], tuple[dict[str, Any], State]]
    read: Callable[[Mapping[str, Any], Mapping[str, Tensor], Path, Base], tuple[MethodParams, State, tuple[str, ...]]]


HUB_FORMATS = (
    HubFormat("lora", ("lora", "qlora"), write_lora, read_lora),
    HubFormat(None, ("adapter", "parallel_adapter", "compacter"), write_bottlenecks, read_bottlenecks),
)
"""A new kind gets a file in this folder, and one line here."""
