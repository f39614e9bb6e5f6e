"""HF peft's files, method by method: which ones it has, its config, and its tensor names both ways.

Layout facts (read in its sources and checked by running it, 0.21): keys are `base_model.model.<path>.<parameter>`, the
adapter's name never appears, a key that it does not expect is ignored in silence, and a missing one only warns. So a
file written here is complete, and names modules by endings or paths that match exactly those that were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters import hf_lora
from peftcli.adapters.format import AdapterMeta
from peftcli.errors import UserError
from peftcli.recipe.params import MethodParams

State = dict[str, Tensor]


@dataclass(frozen=True)
class HfFormat:
    """One method in HF peft's layout.

    Args:
        why_not: why HF peft cannot hold these parameters as they are, or None.
        config: adapter_config.json.
        to_file: from our keys to theirs.
        from_file: back; the inverse of `to_file`.
    """

    why_not: Callable[[Any, AdapterMeta], str | None]
    config: Callable[[Any, AdapterMeta], dict[str, Any]]
    to_file: Callable[[Mapping[str, Tensor], Any, AdapterMeta], State]
    from_file: Callable[[Mapping[str, Tensor], Any, AdapterMeta], State]


_LORA = HfFormat(hf_lora.why_not, hf_lora.config, hf_lora.to_file, hf_lora.from_file)

FORMATS: dict[str, HfFormat] = {"lora": _LORA, "qlora": _LORA}
"""Method name to its layout; a method that is not here is saved in ours."""

Imported = tuple[MethodParams, State, AdapterMeta, tuple[str, ...]]

IMPORTERS: dict[str, Callable[[dict[str, Any], State, Path], Imported]] = {"LORA": hf_lora.read}
"""HF `peft_type` to what reads a directory that HF peft wrote."""


def hf_format(params: MethodParams, meta: AdapterMeta) -> HfFormat | None:
    """Return HF peft's layout of an adapter, or None if HF peft has no such method or cannot hold these parameters."""
    found = FORMATS.get(params.name)
    return found if found and found.why_not(params, meta) is None else None


def import_hf(config: dict[str, Any], tensors: State, where: Path) -> Imported:
    """Turn what HF peft saved into parameters, state and record of ours.

    Raises:
        UserError: a kind of adapter, or an option of it, that cannot be read.
    """
    kind = config.get("peft_type")
    reader = IMPORTERS.get(str(kind))
    if reader is None:
        raise UserError(
            f"{where} holds an adapter of peft_type {kind!r}, which cannot be imported",
            suggestion=f"kinds that can be: {', '.join(sorted(IMPORTERS))}",
        )
    return reader(config, tensors, where)
