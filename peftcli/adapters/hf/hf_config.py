"""An adapter_config.json of HF peft: the kinds of its values are checked once, before any method's layout reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.adapters.sidecar import check_kinds
from peftcli.errors import Problem, UserError
from peftcli.recipe.method_params import NotNegative, Positive, Seed

_AGAIN = "copy or download the adapter again"
_Share = Annotated[float, Field(ge=0, le=1)]


_KINDS: dict[str, Any] = {
    "peft_type": str,
    "task_type": str | None,
    "base_model_name_or_path": str | None,
    "revision": str | None,
    "peft_version": str | None,
    "modules_to_save": list[str] | None,
    "target_modules": list[str] | str | None,
    "target_parameters": list[str] | None,
    "feedforward_modules": list[str] | str | None,
    "fan_in_fan_out": bool | None,
    "bias": str,
    "r": NotNegative,
    "lora_alpha": float,
    "lora_dropout": _Share | None,
    "use_rslora": bool | None,
    "use_dora": bool | None,
    "init_lora_weights": bool | str | None,
    "rank_pattern": dict[str, Any] | None,
    "alpha_pattern": dict[str, float] | None,
    "init_r": Positive,
    "target_r": Positive,
    "tinit": NotNegative | None,
    "tfinal": NotNegative | None,
    "deltaT": NotNegative | None,
    "beta1": _Share,
    "beta2": _Share,
    "orth_reg_weight": float,
    "projection_prng_key": Seed | None,
    "d_initial": float,
    "vera_dropout": _Share | None,
    "oft_block_size": NotNegative | None,
    "module_dropout": _Share | None,
    "coft": bool | None,
    "eps": float | None,
    "block_share": bool | None,
    "use_cayley_neumann": bool | None,
    "num_cayley_neumann_terms": Positive | None,
    "miss_dropout": _Share | None,
    "mini_r": Positive | None,
    "hira_dropout": _Share | None,
    "alpha": float,
    "rank_dropout": _Share | None,
    "rank_dropout_scale": bool | None,
    "decompose_both": bool | None,
    "decompose_factor": int | None,
    "random_seed": Seed | None,
    "num_virtual_tokens": Positive | None,
    "token_dim": Positive | None,
    "num_layers": Positive | None,
    "num_attention_heads": Positive | None,
    "token_indices": list[NotNegative] | None,
    "trainable_token_indices": list[NotNegative] | dict[str, list[NotNegative]] | None,
}
"""The values of all kinds of adapters that this project reads; HF peft writes null for most that are not set."""


def read_hf_config(directory: Path) -> dict[str, Any]:
    """Return adapter_config.json, with every value of the kind that HF peft writes.

    Raises:
        UserError: it is missing or damaged, or a value is of another kind; names the file and the key.
    """
    path = directory / CONFIG
    config = read_json(path)
    check_kinds(_KINDS, ("peft_type",), config, path)
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or {}:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                reason = f"{pattern!r:.60} is no regular expression: {error}"
                raise UserError(Problem(reason, str(path), key=key, suggestion=_AGAIN)) from None
    return config


_OF_TRAINING = frozenset({
    "auto_mapping", "inference_mode", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying",
    "megatron_config", "megatron_core", "runtime_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "init_weights", "init_ia3_weights", "save_projection", "mask_type",
    "total_step", "use_effective_conv2d", "num_transformer_submodules", "prefix_projection", "encoder_hidden_size",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
})  # fmt: skip
"""Keys of HF peft 0.21 that are not read: how an adapter was made, where the tensors tell all that matters."""


def unknown_keys(config: Mapping[str, Any], where: Path) -> list[str]:
    """Return a note on keys that are set and that this version does not know; HF peft passes over such, too.

    Args:
        config: adapter_config.json; keys that the method's layout refuses are not set in it.
        where: the directory, for messages.

    Raises:
        UserError: one of them is the name of a variant, whose tensors would be used as if they were a plain adapter's.
    """
    known = {*_KINDS, *_OF_TRAINING}
    found = [key for key, value in config.items() if key not in known and value not in (None, False, "", [], {})]
    variants = [key for key in found if key.startswith("use_") or key.endswith("_config")]
    if variants:
        raise UserError(
            f"{where / CONFIG} uses {', '.join(variants)}, a variant of a later HF peft, which has no counterpart here",
            suggestion="load the adapter in HF peft and save it merged",
        )
    return [f"{where / CONFIG}: not read, since this version does not know them: {', '.join(found)}"] if found else []
