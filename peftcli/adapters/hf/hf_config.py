"""An adapter_config.json of HF peft: the kinds of its values are checked once, before any method's layout reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.adapters.sidecar import check_kinds
from peftcli.errors import Problem, UserError

_AGAIN = "copy or download the adapter again"
_MOST = 2**31
_Count = Annotated[int, Field(ge=1, lt=_MOST)]
_NotNegative = Annotated[int, Field(ge=0, lt=_MOST)]
_Share = Annotated[float, Field(ge=0, le=1)]


_KINDS: dict[str, Any] = {
    "peft_type": str,
    "task_type": str | None,
    "base_model_name_or_path": str | None,
    "revision": str | None,
    "peft_version": str | None,
    "modules_to_save": list[str] | None,
    "target_modules": list[str] | str | None,
    "feedforward_modules": list[str] | str | None,
    "fan_in_fan_out": bool | None,
    "bias": str,
    "r": _Count,
    "lora_alpha": float,
    "lora_dropout": _Share | None,
    "use_rslora": bool | None,
    "use_dora": bool | None,
    "init_lora_weights": bool | str | None,
    "rank_pattern": dict[str, Any] | None,
    "alpha_pattern": dict[str, float] | None,
    "init_r": _Count,
    "target_r": _Count,
    "tinit": _NotNegative | None,
    "tfinal": _NotNegative | None,
    "deltaT": _NotNegative | None,
    "beta1": _Share,
    "beta2": _Share,
    "orth_reg_weight": float,
    "projection_prng_key": _NotNegative | None,
    "d_initial": float,
    "vera_dropout": _Share | None,
    "num_virtual_tokens": _Count | None,
    "token_dim": _Count | None,
    "num_layers": _Count | None,
    "num_attention_heads": _Count | None,
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
    for pattern in config.get("alpha_pattern") or {}:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            reason = f"{pattern!r:.60} is no regular expression: {error}"
            raise UserError(Problem(reason, str(path), key="alpha_pattern", suggestion=_AGAIN)) from None
    return config
