"""LoRA in HF peft's layout: config, tensor names, PiSSA as a pair of twice the rank, and reading what HF peft wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta, SavedTarget
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams

PREFIX = "base_model.model."
TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
}
_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")

# Options of HF's LoraConfig that change the forward pass in a way that LoraParams has no word for.
_UNREADABLE = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Initialisations that rewrite the base; an adapter saved so belongs to a base that is not on disk.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def why_not(params: LoraParams, meta: AdapterMeta) -> str | None:
    """Return why HF peft cannot hold this adapter as it is: it knows no slice of a fused projection."""
    fused = sorted({target.role or target.key for target in meta.targets if target.slice})
    return f"{', '.join(fused)} are slices of a fused projection" if fused else None


def config(params: LoraParams, meta: AdapterMeta) -> dict[str, Any]:
    """Return adapter_config.json: the keys that every version of HF peft since 0.6 reads without a warning."""
    factor = 2 if params.starts_from_base else 1  # PiSSA is written as a pair of twice the rank
    ranks, alphas = _patterns(params, meta, factor)
    return common_config(meta) | {
        "peft_type": "LORA",
        "r": params.r * factor,
        "lora_alpha": _alpha_for(params, params.lora_alpha, factor),
        "lora_dropout": params.lora_dropout,
        "bias": params.bias,
        "fan_in_fan_out": any(target.kind == "conv1d" for target in meta.targets),
        "target_modules": list(meta.target_names),
        "modules_to_save": [*meta.head, *(path for path in meta.modules_to_save if path not in meta.head)] or None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": params.use_rslora,
        "use_dora": params.use_dora,
        "init_lora_weights": True,  # the tensors are in the file; anything else would change the base on loading
    }


def common_config(meta: AdapterMeta) -> dict[str, Any]:
    """Return the keys of adapter_config.json that every kind of adapter has."""
    return {
        "task_type": TASK_TYPES.get(meta.task),
        "base_model_name_or_path": meta.base.get("name"),
        "revision": meta.base.get("revision"),
        "inference_mode": True,
    }


def _patterns(params: LoraParams, meta: AdapterMeta, factor: int) -> tuple[dict[str, int], dict[str, float]]:
    """Return HF's rank_pattern and alpha_pattern, by full path: roles mean nothing there."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for target in meta.targets:
        path = f"^{re.escape(target.module)}"
        rank = params.rank_of(target.role, target.key)
        alpha = params.alpha_of(target.role, target.key)
        if rank != params.r:
            ranks[path] = rank * factor
        if alpha != params.lora_alpha:
            alphas[path] = _alpha_for(params, alpha, factor)
    return ranks, alphas


def _alpha_for(params: LoraParams, alpha: float, factor: int) -> float:
    """Return the alpha that gives the same scale at `factor` times the rank."""
    return alpha if factor == 1 else alpha * (math.sqrt(factor) if params.use_rslora else factor)


def to_file(state: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by HF peft's keys."""
    state = stack_initial(state) if params.starts_from_base else dict(state)
    targeted = {f"{target.module}.bias" for target in meta.targets}
    return {PREFIX + (_below_base_layer(key) if key in targeted else key): tensor for key, tensor in state.items()}


def from_file(tensors: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by our keys; the inverse of `to_file`."""
    state = {_without_prefix(key).replace(".base_layer.", "."): tensor for key, tensor in tensors.items()}
    return split_initial(state) if params.starts_from_base else state


def _below_base_layer(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{module}.base_layer.{parameter}"


def _without_prefix(key: str) -> str:
    if not key.startswith(PREFIX):
        raise UserError(f"the adapter's key {key!r} does not begin with {PREFIX!r}: not a file of HF peft's layout")
    return key.removeprefix(PREFIX)


def stack_initial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write B A - B0 A0 as one product: [B, -B0] [A; A0]."""
    stacked = dict(state)
    for key in [key.removesuffix(".initial_A") for key in state if key.endswith(".initial_A")]:
        a, b = stacked.pop(f"{key}.initial_A"), stacked.pop(f"{key}.initial_B")
        stacked[f"{key}.lora_A.weight"] = torch.cat([state[f"{key}.lora_A.weight"], a])
        stacked[f"{key}.lora_B.weight"] = torch.cat([state[f"{key}.lora_B.weight"], -b], dim=1)
    return stacked


def split_initial(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `stack_initial`, bit for bit."""
    split = dict(state)
    for key in [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]:
        a, a0 = state[f"{key}.lora_A.weight"].chunk(2)
        b, b0 = state[f"{key}.lora_B.weight"].chunk(2, dim=1)
        split |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        split |= {f"{key}.initial_A": a0, f"{key}.initial_B": -b0}
    return split


def read(
    config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path
) -> tuple[LoraParams, dict[str, Tensor], AdapterMeta, tuple[str, ...]]:
    """Read a LoRA directory that HF peft wrote.

    Targets, ranks and scales are taken from the tensors and from HF's matching rules, and written as full paths: the
    same modules are changed, whatever the names in the config would match elsewhere.

    Raises:
        UserError: an option that has no equal here, an unknown task type, a base that was rewritten, or a foreign key.
    """
    _refuse_unreadable(config, where)
    state, notes = _own_keys(tensors, where)
    ranks = {key: _rank(state, key) for key in _target_keys(state)}
    if not ranks:
        raise UserError(f"{where} is a LoRA adapter without a single lora_A")
    rank = int(config.get("r", 8))
    alpha = config.get("lora_alpha", 8)
    alphas = {key: _first_match(config.get("alpha_pattern") or {}, key, alpha) for key in ranks}
    others = [key for key in state if not key.endswith(_FACTORS)]
    biases = [key for key in others if key.endswith(".bias")] if config.get("bias", "none") != "none" else []
    whole = _whole_modules([key for key in others if key not in biases], config)
    params = LoraParams(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=float(config.get("lora_dropout") or 0.0),
        target_modules=list(ranks),
        bias=config.get("bias", "none"),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        rank_pattern={f"^{re.escape(key)}": value for key, value in ranks.items() if value != rank},
        alpha_pattern={f"^{re.escape(key)}": value for key, value in alphas.items() if value != alpha},
        modules_to_save=whole or None,
    )
    kind = "conv1d" if config.get("fan_in_fan_out") else "linear"
    targets = tuple(
        SavedTarget(key, key, None, "embedding" if f"{key}.lora_embedding_A" in state else kind) for key in ranks
    )
    meta = AdapterMeta(
        task=_task(config, where),
        base={"name": config.get("base_model_name_or_path"), "revision": config.get("revision")},
        targets=targets,
        target_names=tuple(ranks),
        modules_to_save=tuple(whole),
        versions={"peft": str(config.get("peft_version", "unknown"))},
    )
    return params, state, meta, tuple(notes)


def _refuse_unreadable(config: Mapping[str, Any], where: Path) -> None:
    used = [name for name in _UNREADABLE if config.get(name)]
    if used:
        raise UserError(f"{where} uses {', '.join(used)} of HF peft, which has no equal here")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING):
        raise UserError(
            f"{where} was saved with init_lora_weights {init!r}: it belongs to a base that HF peft rewrote",
            suggestion="save it in HF peft with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )


def _own_keys(tensors: Mapping[str, Tensor], where: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors by our keys, and notes on what was left out."""
    state: dict[str, Tensor] = {}
    notes = []
    for key, tensor in tensors.items():
        name = _without_prefix(key)
        if ".original_module." in name or ".modules_to_save." in name:
            continue  # `bias: all` makes HF peft write the wrapper's copies too; the module's own key is there as well
        if name.endswith(".base_layer.weight"):
            notes.append(f"{where}: left out {name}, a copy of the base's own embedding")
        else:
            state[name.replace(".base_layer.", ".")] = tensor
    return state, notes


def _whole_modules(keys: list[str], config: Mapping[str, Any]) -> list[str]:
    """Return the modules that HF peft saved whole: the outermost that its names match, by ending as it does."""
    endings = (*(config.get("modules_to_save") or ()), "classifier", "score")
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")[:-1]
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        found[next((path for path in paths if path.endswith(endings)), paths[-1])] = None
    return list(found)


def _target_keys(state: Mapping[str, Tensor]) -> list[str]:
    return [
        key.removesuffix(suffix)
        for key in state
        for suffix in (".lora_A.weight", ".lora_embedding_A")
        if key.endswith(suffix)
    ]


def _rank(state: Mapping[str, Tensor], key: str) -> int:
    first = state.get(f"{key}.lora_A.weight", state.get(f"{key}.lora_embedding_A"))
    assert first is not None  # `_target_keys` found one of them
    return len(first)


def _first_match(patterns: Mapping[str, Any], key: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", key)), default)


def _task(config: Mapping[str, Any], where: Path) -> str:
    for task, kind in TASK_TYPES.items():
        if config.get("task_type") == kind:
            return task
    raise UserError(
        f"{where}: task_type is {config.get('task_type')!r}",
        suggestion=f"write one of {', '.join(TASK_TYPES.values())} into adapter_config.json",
    )
