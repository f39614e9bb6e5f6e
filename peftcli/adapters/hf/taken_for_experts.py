"""Linear modules that HF peft takes for experts: their names are those that the experts' weights once had.

transformers 5 stores the experts of a block in 3-D parameters. So that older adapters still load, HF peft (0.21.2,
`utils/transformers_weight_conversion.py`) moves the old names of experts from a LoRA's `target_modules` to
`target_parameters`, whatever else of that name a model has: a shared expert, a dense block. So such linears are
named by their weights in `target_parameters`, which HF peft leaves as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from peftcli.adapters.format import AdapterMeta, SavedTarget

_OLD_NAMES = {"mixtral": ("gate", "w1", "w2", "w3"), "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj")}
"""The old names, by transformers' name of the way in which a type's experts were put together."""
_WEIGHT = ".weight"


def taken_for_experts(meta: AdapterMeta) -> list[SavedTarget]:
    """Return the targets, no experts themselves, that HF peft would look for among the experts."""
    old = _OLD_NAMES.get(_ways().get(meta.family or "", ""), ())
    return [target for target in meta.targets if target.kind != "experts" and _leaf(target.module) in old]


def targets_of_config(meta: AdapterMeta) -> dict[str, list[str]]:
    """Return `target_modules` and, where there are such, `target_parameters` of HF peft's config."""
    old = {_leaf(target.module) for target in taken_for_experts(meta)}
    weights = [name + _WEIGHT for name in meta.target_names if _leaf(name) in old]
    parameters = [*meta.target_parameters, *weights]
    modules = [name for name in meta.target_names if _leaf(name) not in old]
    return {"target_modules": modules} | ({"target_parameters": parameters} if parameters else {})


@cache
def _ways() -> Mapping[str, str]:
    """Return transformers' name of the way in which experts were put together, by the type of a model."""
    from transformers import conversion_mapping

    ways: Mapping[str, str] = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    return ways


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
