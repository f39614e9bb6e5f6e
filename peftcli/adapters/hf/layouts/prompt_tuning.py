"""Prompt tuning in HF peft's layout.

One tensor (T, d), in front of everything; for an encoder-decoder (2T, d), of which the second half is never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.base_shape import Base
from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.flat_prompts import FlatFormat
from peftcli.adapters.hf.hf_format import State
from peftcli.methods.prompt_tuning import PromptTuningParams
from peftcli.tasks.task_table import task_info


class PromptTuningFormat(FlatFormat[PromptTuningParams]):
    """Prompt tuning with the prompt in front of the first token, the only place that HF peft has."""

    peft_type = "PROMPT_TUNING"
    remedy = "train with method.prompt_position: front to export it; as it is, use it with peft predict"

    def why_not(self, params: PromptTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold this prompt."""
        if not meta.stacks:
            return "its file does not say which stacks the base has"
        in_encoder = "decoder" not in meta.stacks
        if params.prompt_position == "after_first" or (params.prompt_position == "auto" and in_encoder):
            return "HF peft puts a prompt in front of the first token, and this one is behind it (prompt_position)"
        return None

    def config(self, params: PromptTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json; the vectors are in the file, so no text or tokenizer is named."""
        changes = {
            "num_virtual_tokens": params.num_virtual_tokens,
            "token_dim": state[f"{meta.places[0]}.embeddings"].shape[1],
            "num_transformer_submodules": task_info(meta.task).hf_prompt_copies,
            # of no use to a prompt; without them HF peft refuses a base whose config has other names (MPT, XGLM, DBRX)
            "num_layers": 1,
            "num_attention_heads": 1,
            "prompt_tuning_init": "RANDOM",
        }
        return hf_files.common_config(meta, self.peft_type) | changes

    def flat(self, state: Mapping[str, Tensor], meta: AdapterMeta) -> Tensor:
        """Return (T, d), or (2T, d) for an encoder-decoder."""
        rows = state[f"{meta.places[0]}.embeddings"]
        return torch.cat([rows, *[torch.zeros_like(rows)] * (task_info(meta.task).hf_prompt_copies - 1)])

    def unflat(self, flat: Tensor, params: PromptTuningParams, meta: AdapterMeta, config: Mapping[str, Any]) -> State:
        """Return the prompt, (T, d)."""
        return {f"{meta.places[0]}.embeddings": flat[: params.num_virtual_tokens].clone()}

    def params_of(self, config: Mapping[str, Any], whole: list[str], base: Base, where: Path) -> PromptTuningParams:
        """Return the hyper-parameters of a prompt that HF peft saved; its rows stand in front."""
        return PromptTuningParams(
            num_virtual_tokens=hf_files.number(config, "num_virtual_tokens"),
            prompt_tuning_init="random",
            prompt_position="front",
            modules_to_save=whole or None,
        )

    def places(self, base: Base) -> tuple[str, ...]:
        """Return the key of the one prompt."""
        return (f"{base.anatomy.embeddings}.prompt",)
