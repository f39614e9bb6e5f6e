"""An adapter_config.json of HF peft: the kinds of its values are checked once, before any method's layout reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftcli.adapters.adapter_files import CONFIG, read_json
from peftcli.errors import Problem, UserError
from peftcli.typed_record import record_of

_AGAIN = "copy or download the adapter again"
_MOST = 2**31
_Count = Annotated[int, Field(ge=1, lt=_MOST)]
_NotNegative = Annotated[int, Field(ge=0, lt=_MOST)]
_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _HfConfig:
    """The values that this project reads, of all kinds of adapters; HF peft writes null for most that are not set."""

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None
    modules_to_save: list[str] | None = None
    target_modules: list[str] | str | None = None
    feedforward_modules: list[str] | str | None = None
    fan_in_fan_out: bool | None = None
    bias: str = "none"
    r: _Count = 8
    lora_alpha: float = 8
    lora_dropout: _Share | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init_lora_weights: bool | str | None = None
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, float] | None = None
    init_r: _Count = 12
    target_r: _Count = 8
    tinit: _NotNegative | None = None
    tfinal: _NotNegative | None = None
    deltaT: _NotNegative | None = None
    beta1: _Share = 0.85
    beta2: _Share = 0.85
    orth_reg_weight: float = 0.5
    projection_prng_key: _NotNegative | None = None
    d_initial: float = 0.1
    vera_dropout: _Share | None = None
    num_virtual_tokens: _Count | None = None
    token_dim: _Count | None = None
    num_layers: _Count | None = None
    num_attention_heads: _Count | None = None


def read_hf_config(directory: Path) -> dict[str, Any]:
    """Return adapter_config.json, with every value of the kind that HF peft writes.

    Raises:
        UserError: it is missing or damaged, or a value is of another kind; names the file and the key.
    """
    path = directory / CONFIG
    config = read_json(path)
    record_of(_HfConfig, config, path, suggestion=_AGAIN)
    for pattern in config.get("alpha_pattern") or {}:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            reason = f"{pattern!r:.60} is no regular expression: {error}"
            raise UserError(Problem(reason, str(path), key="alpha_pattern", suggestion=_AGAIN)) from None
    return config
