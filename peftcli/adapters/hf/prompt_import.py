"""Read prefix and prompt tuning that HF peft saved; the base model tells the modules that the file does not name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.adapter_base import Base, BaseName, fit
from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import flat_prompts as hf_prompts
from peftcli.adapters.hf import hf_files as hf_common
from peftcli.errors import UserError
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.methods.prompt_tuning import PromptTuningParams

Read = tuple[Any, dict[str, Tensor], AdapterMeta, tuple[str, ...]]


def read_prefix(config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName) -> Read:
    """Read prefix tuning that HF peft saved for a decoder.

    Raises:
        UserError: the base is no decoder, is not known, or does not fit.
    """
    found = base.read(hf_common.task_of(config, where), tensors)
    stacks = [stack for stack, blocks in found.anatomy.layers.items() if blocks]
    if stacks != ["decoder"]:
        raise UserError(
            f"{where} is a prefix on a {found.anatomy.family} model, which has an encoder: HF peft applies it there in "
            "another way than this project",
            suggestion="train prefix_tuning on that model here; an HF prefix can be taken over for decoders only",
        )
    if found.anatomy.prefix_route != "interface":
        raise UserError(
            f"{where} cannot be taken over: {hf_prompts.by_distance(found.anatomy.family)}",
            suggestion="train prefix_tuning on that model here",
        )
    whole = _whole(config, tensors)
    tokens = hf_common.number(config, "num_virtual_tokens")
    params = PrefixTuningParams(num_virtual_tokens=tokens, prefix_projection=False, modules_to_save=whole or None)
    return _read(hf_prompts.prefix_from_file, params, config, tensors, where, found)


def read_prompt(config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName) -> Read:
    """Read prompt tuning that HF peft saved; its rows stand in front.

    Raises:
        UserError: the base is not known, or does not fit.
    """
    found = base.read(hf_common.task_of(config, where), tensors)
    params = PromptTuningParams(
        num_virtual_tokens=hf_common.number(config, "num_virtual_tokens"),
        prompt_tuning_init="random",
        prompt_position="front",
        modules_to_save=_whole(config, tensors) or None,
    )
    return _read(hf_prompts.prompt_from_file, params, config, tensors, where, found)


def _whole(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    names = [hf_common.without_prefix(key, hf_common.PROMPT_PREFIX) for key in tensors if key != "prompt_embeddings"]
    return hf_common.whole_modules(names, config)


def _read(
    from_file: Any, params: Any, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: Base
) -> Read:
    task = hf_common.task_of(config, where)
    meta = AdapterMeta(task=task, places=_places(base, params))
    state = from_file(tensors, params, meta, config)
    return params, state, fit(base, params, state, task, where), ()


def _places(base: Base, params: Any) -> tuple[str, ...]:
    """Return the keys below which this method's tensors are saved on this base."""
    if isinstance(params, PrefixTuningParams):
        return tuple(f"{role.module}.prefix" for role in base.anatomy.attentions)
    return (f"{base.anatomy.embeddings}.prompt",)
