"""Prefix and prompt tuning in HF peft's layout: one flat tensor, `prompt_embeddings`, that names no module.

Prefix: (T, 2 layers * kv_heads * head_dim), viewed as (T, 2 layers, kv_heads, head_dim); 2i is the key of layer i and
2i + 1 its value. HF peft fills the cache with them, so that positions count from T. Prompt: (T, d), in front of
everything; for an encoder-decoder (2T, d) of which the second half is never used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import hf_files as hf_common
from peftcli.adapters.hf.hf_files import PROMPT_PREFIX
from peftcli.errors import UserError
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.methods.prompt_tuning import PromptTuningParams
from peftcli.tasks.task_table import task_info

_FLAT = "prompt_embeddings"
PREFIX_NOTE = (
    "HF peft counts positions from num_virtual_tokens, as here: do not pass position_ids of your own. In a model with "
    "a sliding window its virtual tokens leave the window; here they do not, so longer texts give other outputs there."
)


def prefix_why_not(params: PrefixTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
    """Return why HF peft cannot hold these prefixes."""
    if "encoder" in meta.stacks:
        kind = "an encoder-decoder" if "decoder" in meta.stacks else "an encoder"
        return f"HF peft's prefix fills a decoder's cache, and this base is {kind}"
    if meta.stacks != ("decoder",):
        return "its file does not say that the base is a decoder"
    if meta.family == "whisper":
        return "a speech decoder counts positions in another way under HF peft"
    if params.shift_positions is False:
        return "HF peft counts positions from num_virtual_tokens, and this was trained with shift_positions: false"
    if meta.prefix_route != "interface":
        return by_distance(str(meta.family))
    shapes = {state[f"{key}.key"].shape for key in meta.places}
    if len(shapes) != 1 or next(iter(shapes))[0] != 1:
        return "the layers' keys differ in shape, or layers share one attention"
    return None


def by_distance(family: str) -> str:
    """Return why a prefix in the cache is not this project's prefix on Bloom, Falcon with ALiBi or GPT-Neo.

    Compared with HF peft: the logits differ. Here a prefix has no distance, and is in every window.
    """
    return f"this {family} model biases or hides columns by their distance, which HF peft's prefix has and ours has not"


def prefix_config(params: PrefixTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return adapter_config.json."""
    _, kv_heads, _, head_dim = state[f"{meta.places[0]}.key"].shape
    changes = {
        "num_virtual_tokens": params.num_virtual_tokens,
        "num_layers": len(meta.places),
        "num_attention_heads": kv_heads,
        "token_dim": kv_heads * head_dim,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": params.encoder_hidden_size,
        "prefix_projection": False,  # the file is flat; a network would be made anew, and at random
    }
    return hf_common.common_config(meta, "PREFIX_TUNING") | changes


def prefix_to_file(state: Mapping[str, Tensor], _params: PrefixTuningParams, meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by HF peft's keys."""
    slots = [state[f"{key}.{side}"][0].transpose(0, 1) for key in in_order(meta.places) for side in ("key", "value")]
    return {_FLAT: torch.stack(slots, dim=1).flatten(1), **_head(state, meta)}


def prefix_from_file(
    tensors: Mapping[str, Tensor], _params: PrefixTuningParams, meta: AdapterMeta, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors by our keys.

    Raises:
        UserError: the flat tensor is missing, or is not of the shape that the config says.
    """
    flat, state = _split(tensors)
    names = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    tokens, layers, heads, width = (hf_common.number(config, name) for name in names)
    if flat.shape != (tokens, 2 * layers * width) or layers != len(meta.places) or width % heads:
        raise UserError(
            f"{_FLAT} has shape {tuple(flat.shape)}; expected ({tokens}, {2 * layers * width}) for {layers} layers, of "
            f"which this base has {len(meta.places)}",
            suggestion="use the base model that the adapter was trained on",
        )
    slots = flat.view(tokens, 2 * layers, heads, width // heads).permute(1, 2, 0, 3)  # (2L, heads, T, head_dim)
    for number, key in enumerate(in_order(meta.places)):
        state[f"{key}.key"] = slots[2 * number].unsqueeze(0).contiguous()
        state[f"{key}.value"] = slots[2 * number + 1].unsqueeze(0).contiguous()
    return state


def in_order(places: tuple[str, ...]) -> list[str]:
    """Return keys by the numbers in them: layer 2 before layer 10."""
    return sorted(places, key=lambda key: [int(number) for number in re.findall(r"\d+", key)])


def prompt_why_not(params: PromptTuningParams, meta: AdapterMeta, _state: Mapping[str, Tensor]) -> str | None:
    """Return why HF peft cannot hold this prompt: it knows no place but the front."""
    if not meta.stacks:
        return "its file does not say which stacks the base has"
    in_encoder = "decoder" not in meta.stacks
    if params.prompt_position == "after_first" or (params.prompt_position == "auto" and in_encoder):
        return "HF peft puts a prompt in front of the first token, and this one is behind it (prompt_position)"
    return None


def prompt_config(params: PromptTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return adapter_config.json; the vectors are in the file, so no text or tokenizer is named."""
    changes = {
        "num_virtual_tokens": params.num_virtual_tokens,
        "token_dim": state[f"{meta.places[0]}.embeddings"].shape[1],
        "num_transformer_submodules": _submodules(meta),
        "prompt_tuning_init": "RANDOM",
    }
    return hf_common.common_config(meta, "PROMPT_TUNING") | changes


def _submodules(meta: AdapterMeta) -> int:
    return task_info(meta.task).hf_prompt_copies


def prompt_to_file(state: Mapping[str, Tensor], _params: PromptTuningParams, meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by HF peft's keys."""
    rows = state[f"{meta.places[0]}.embeddings"]
    return {_FLAT: torch.cat([rows, *[torch.zeros_like(rows)] * (_submodules(meta) - 1)]), **_head(state, meta)}


def prompt_from_file(
    tensors: Mapping[str, Tensor], params: PromptTuningParams, meta: AdapterMeta, _config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors by our keys."""
    flat, state = _split(tensors)
    state[f"{meta.places[0]}.embeddings"] = flat[: params.num_virtual_tokens].clone()
    return state


def _head(state: Mapping[str, Tensor], meta: AdapterMeta) -> dict[str, Tensor]:
    own = tuple(f"{key}." for key in meta.places)
    return {PROMPT_PREFIX + key: tensor for key, tensor in state.items() if not key.startswith(own)}


def _split(tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the flat tensor, and the others by our keys."""
    if _FLAT not in tensors:
        raise UserError(f"the adapter has no {_FLAT}: not a file of HF peft's layout")
    rest = {hf_common.without_prefix(key, PROMPT_PREFIX): t for key, t in tensors.items() if key != _FLAT}
    return tensors[_FLAT], rest
