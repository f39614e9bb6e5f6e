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

from peftcli.adapters.adapter_base import BaseName
from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import adalora as hf_adalora
from peftcli.adapters.hf import flat_prompts as hf_prompts
from peftcli.adapters.hf import ia3 as hf_ia3
from peftcli.adapters.hf import lora as hf_lora
from peftcli.adapters.hf import vera as hf_vera
from peftcli.adapters.hf.prompt_import import read_prefix, read_prompt
from peftcli.errors import UserError
from peftcli.recipe.params import MethodParams

State = dict[str, Tensor]


@dataclass(frozen=True)
class HfFormat:
    """One method in HF peft's layout.

    Args:
        why_not: why HF peft cannot hold these parameters and tensors as they are, or None.
        config: adapter_config.json.
        to_file: from our keys to theirs.
        from_file: back, with the config that lies beside them; the inverse of `to_file`.
        note: what a user of HF peft should know, for the model card.
    """

    why_not: Callable[[Any, AdapterMeta, Mapping[str, Tensor]], str | None]
    config: Callable[[Any, AdapterMeta, Mapping[str, Tensor]], dict[str, Any]]
    to_file: Callable[[Mapping[str, Tensor], Any, AdapterMeta], State]
    from_file: Callable[[Mapping[str, Tensor], Any, AdapterMeta, Mapping[str, Any]], State]
    note: str | None = None


_LORA = HfFormat(hf_lora.why_not, hf_lora.config, hf_lora.to_file, hf_lora.from_file)

FORMATS: dict[str, HfFormat] = {
    "lora": _LORA,
    "qlora": _LORA,
    "adalora": HfFormat(hf_adalora.why_not, hf_adalora.config, hf_adalora.to_file, hf_adalora.from_file),
    "vera": HfFormat(hf_vera.why_not, hf_vera.config, hf_vera.to_file, hf_vera.from_file),
    "ia3": HfFormat(hf_ia3.why_not, hf_ia3.config, hf_ia3.to_file, hf_ia3.from_file),
    "prefix_tuning": HfFormat(
        hf_prompts.prefix_why_not,
        hf_prompts.prefix_config,
        hf_prompts.prefix_to_file,
        hf_prompts.prefix_from_file,
        hf_prompts.PREFIX_NOTE,
    ),
    "prompt_tuning": HfFormat(
        hf_prompts.prompt_why_not, hf_prompts.prompt_config, hf_prompts.prompt_to_file, hf_prompts.prompt_from_file
    ),
}
"""Method name to its layout; a method that is not here is saved in ours."""

Imported = tuple[MethodParams, State, AdapterMeta, tuple[str, ...]]

IMPORTERS: dict[str, Callable[[dict[str, Any], State, Path], Imported]] = {
    "LORA": hf_lora.read,
    "ADALORA": hf_adalora.read,
    "VERA": hf_vera.read,
    "IA3": hf_ia3.read,
}
"""HF `peft_type` to what reads a directory that HF peft wrote."""

PROMPT_IMPORTERS: dict[str, Callable[[dict[str, Any], State, Path, BaseName], Imported]] = {
    "PREFIX_TUNING": read_prefix,
    "PROMPT_TUNING": read_prompt,
}
"""The same for kinds whose files name no module, so that the base must be known."""


def hf_format(params: MethodParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> HfFormat | None:
    """Return HF peft's layout of an adapter, or None if HF peft has no such method or cannot hold this one."""
    found = FORMATS.get(params.name)
    return found if found and found.why_not(params, meta, state) is None else None


def import_hf(config: dict[str, Any], tensors: State, where: Path, base: BaseName | None = None) -> Imported:
    """Turn what HF peft saved into parameters, state and record of ours.

    Args:
        config: adapter_config.json.
        tensors: adapter_model.safetensors.
        where: their directory, for messages.
        base: the base model, for the kinds that cannot be read without; None where none may be read.

    Raises:
        UserError: a kind of adapter, or an option of it, that cannot be read.
    """
    kind = str(config.get("peft_type"))
    if kind in IMPORTERS:
        return IMPORTERS[kind](config, tensors, where)
    if kind not in PROMPT_IMPORTERS:
        raise UserError(
            f"{where} holds an adapter of peft_type {config.get('peft_type')!r}, which cannot be imported",
            suggestion=f"kinds that can be: {', '.join(sorted({*IMPORTERS, *PROMPT_IMPORTERS}))}",
        )
    if base is None:
        raise UserError(
            f"{where} holds an adapter of peft_type {kind!r}, which names no module: only its base tells them",
            suggestion=f"first turn it into ours: peft import {where} -o DIR --base MODEL",
        )
    return PROMPT_IMPORTERS[kind](config, tensors, where, base)
