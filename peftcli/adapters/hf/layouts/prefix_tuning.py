"""Prefix tuning in HF peft's layout.

One tensor (T, 2 layers * kv_heads * head_dim), viewed as (T, 2 layers, kv_heads, head_dim); 2i is the key of layer i
and 2i + 1 its value. HF peft fills the cache with them, so that positions count from T.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.base_shape import Base
from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.flat_prompts import FLAT, FlatFormat
from peftcli.adapters.hf.hf_format import State
from peftcli.errors import UserError
from peftcli.methods.prefix_tuning import PrefixTuningParams


class PrefixTuningFormat(FlatFormat[PrefixTuningParams]):
    """Prefix tuning of decoders; on other models it computes something else in HF peft."""

    peft_type = "PREFIX_TUNING"
    note = (
        "HF peft counts positions from num_virtual_tokens, as here: do not pass your own position_ids. In a model with "
        "a sliding window, virtual tokens leave the window in HF peft, but not here: outputs for longer texts differ."
    )

    def why_not(self, params: PrefixTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
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
            return _by_distance(str(meta.family))
        shapes = {state[f"{key}.key"].shape for key in meta.places}
        if len(shapes) != 1 or next(iter(shapes))[0] != 1:
            return "the layers' keys differ in shape, or layers share one attention"
        return None

    def config(self, params: PrefixTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
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
        return hf_files.common_config(meta, self.peft_type) | changes

    def flat(self, state: Mapping[str, Tensor], meta: AdapterMeta) -> Tensor:
        """Return (T, 2 layers * kv_heads * head_dim)."""
        keys = _in_order(meta.places)
        slots = [state[f"{key}.{side}"][0].transpose(0, 1) for key in keys for side in ("key", "value")]
        return torch.stack(slots, dim=1).flatten(1)

    def unflat(self, flat: Tensor, params: PrefixTuningParams, meta: AdapterMeta, config: Mapping[str, Any]) -> State:
        """Return keys and values, (1, kv_heads, T, head_dim) each."""
        names = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
        tokens, layers, heads, width = (hf_files.number(config, name) for name in names)
        if flat.shape != (tokens, 2 * layers * width) or layers != len(meta.places) or width % heads:
            raise UserError(
                f"{FLAT} has shape {tuple(flat.shape)}; expected ({tokens}, {2 * layers * width}) for {layers} layers, "
                f"of which this base has {len(meta.places)}",
                suggestion="use the base model that the adapter was trained on",
            )
        state: State = {}
        slots = flat.view(tokens, 2 * layers, heads, width // heads).permute(1, 2, 0, 3)  # (2L, heads, T, head_dim)
        for number, key in enumerate(_in_order(meta.places)):
            state[f"{key}.key"] = slots[2 * number].unsqueeze(0).contiguous()
            state[f"{key}.value"] = slots[2 * number + 1].unsqueeze(0).contiguous()
        return state

    def params_of(self, config: Mapping[str, Any], whole: list[str], base: Base, where: Path) -> PrefixTuningParams:
        """Return the hyper-parameters of a prefix that HF peft saved for a decoder."""
        stacks = [stack for stack, blocks in base.anatomy.layers.items() if blocks]
        if stacks != ["decoder"]:
            raise UserError(
                f"{where} is a prefix on a {base.anatomy.family} model, which has an encoder: HF peft applies it there "
                "in another way than this project",
                suggestion="train prefix_tuning on that model here; an HF prefix can be taken over for decoders only",
            )
        if base.anatomy.prefix_route != "interface":
            raise UserError(
                f"{where} cannot be taken over: {_by_distance(base.anatomy.family)}",
                suggestion="train prefix_tuning on that model here",
            )
        tokens = hf_files.number(config, "num_virtual_tokens")
        return PrefixTuningParams(num_virtual_tokens=tokens, prefix_projection=False, modules_to_save=whole or None)

    def places(self, base: Base) -> tuple[str, ...]:
        """Return one key for each attention."""
        return tuple(f"{role.module}.prefix" for role in base.anatomy.attentions)


def _by_distance(family: str) -> str:
    """Return why HF peft's prefix computes something else on Bloom, Falcon with ALiBi and GPT-Neo.

    In HF peft a prefix has positions, so ALiBi biases it and a local window hides it; here it has none. A comparison
    showed different logits.
    """
    return f"this {family} model biases or hides columns by their distance, which HF peft's prefix has and ours has not"


def _in_order(places: tuple[str, ...]) -> list[str]:
    """Return keys sorted by the numbers in them: layer 2 before layer 10."""
    return sorted(places, key=lambda key: [int(number) for number in re.findall(r"\d+", key)])
