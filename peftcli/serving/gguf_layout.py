"""A model's tensors and hyper-parameters as a GGUF file has them: names, order of rows, shifts, keys.

Nothing here reads weights; the facts of each family are in `models.families.gguf_families`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.models.families.gguf_families import GGUF_FAMILIES, Config, GgufFamily

_INSTEAD = "export it --to vllm, or fold it into the base with peft merge"
_TYPES = {"count": gguf.GGUFValueType.UINT32, "number": gguf.GGUFValueType.FLOAT32}


@dataclass(frozen=True)
class Key:
    """A key of a GGUF file with its value."""

    name: str
    value: Any
    kind: gguf.GGUFValueType


def gguf_family(config: Config) -> GgufFamily:
    """Return the row of a model's family.

    Args:
        config: of the model, as plain data.

    Raises:
        UserError: the family has no row, or llama.cpp would compute another model than transformers.
    """
    model_type = str(config.get("model_type"))
    family = GGUF_FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(GGUF_FAMILIES)
        raise UserError(
            f"models of the family {model_type} cannot be written as GGUF here; these can: {known}", suggestion=_INSTEAD
        )
    reason = _why_not(family, config)
    if reason is not None:
        raise UserError(f"this {model_type} cannot be written as GGUF: {reason}", suggestion=_INSTEAD)
    return family


def _why_not(family: GgufFamily, config: Config) -> str | None:
    """Return why llama.cpp computes another model than transformers does with this config, or None."""
    activation = config.get("hidden_act") or config.get("hidden_activation")
    if activation is not None and activation not in family.activations:
        return f"its activation is {activation}, and llama.cpp's is {family.activations[0]}"
    for rotation in _rotations(config):
        if rotation.get("rope_type", "default") not in family.rotary_kinds:
            return f"llama.cpp has no rope_type {rotation['rope_type']} for it"
    kinds = config.get("layer_types")
    if family.sliding is not None and kinds and config.get("sliding_window"):
        whole = [(number + 1) % family.sliding == 0 for number in range(len(kinds))]
        if [kind == "full_attention" for kind in kinds] != whole:
            return f"in llama.cpp the last of each {family.sliding} layers attends to the whole text; here others do"
    return family.why_not(config)


def _rotations(config: Config) -> list[dict[str, Any]]:
    """Return the rotations of positions: one, or one for each kind of layer."""
    found = config.get("rope_parameters") or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def hyper_parameters(family: GgufFamily, config: Config) -> list[Key]:
    """Return the keys below the architecture's name."""
    keys = []
    for setting in family.settings:
        value = _value(config, setting.name)
        if value is None:
            value = setting.missing
        if value is not None:
            keys.append(Key(setting.key, value, _TYPES[setting.kind]))
    if family.rotary_size is not None:
        size = _head_size(config) if family.rotary_size == "head" else _rotated(config)
        keys.append(Key("rope.dimension_count", size, gguf.GGUFValueType.UINT32))
    if family.rotary_keys != "none":
        keys += [key for key in _rotary_keys(config) if family.rotary_keys == "kind" or key.name == "rope.freq_base"]
    attention = _long_attention(config)
    if attention is not None and "longrope" in family.rotary_kinds:
        keys.append(Key("rope.scaling.attn_factor", attention, gguf.GGUFValueType.FLOAT32))
    return [Key(f"{family.architecture}.{key.name}", key.value, key.kind) for key in keys]


def _value(config: Config, name: str) -> Any:
    return config.get(name, (config.get("rope_parameters") or {}).get(name))


def _head_size(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rotated(config: Config) -> int:
    """Return how many features of a head are rotated."""
    share = _value(config, "partial_rotary_factor")
    return int((1.0 if share is None else share) * config["hidden_size"]) // int(config["num_attention_heads"])


def _long_attention(config: Config) -> float | None:
    """Return the factor of attention that LongRoPE has (Ding et al. 2024), None for another rotation."""
    if not _value(config, "long_factor"):
        return None
    original = _value(config, "original_max_position_embeddings")
    scale = config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _rotary_keys(config: Config) -> Iterator[Key]:
    number, count, text = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING
    both: dict[str, Any] = config.get("rope_parameters") or {}
    rotation: dict[str, Any] = both.get("full_attention", both)
    kind = rotation.get("rope_type")
    if kind in ("linear", "yarn") and rotation.get("factor") is not None:
        yield Key("rope.scaling.type", kind, text)
        yield Key("rope.scaling.factor", rotation["factor"], number)
    if kind == "yarn":
        yield Key("rope.scaling.original_context_length", rotation["original_max_position_embeddings"], count)
        names = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        for name, key in names.items():
            if rotation.get(name) is not None:
                yield Key(f"rope.scaling.{key}", rotation[name], number)
    if rotation.get("rope_theta") is not None:
        yield Key("rope.freq_base", rotation["rope_theta"], number)
    local = both.get("sliding_attention") or {}
    if local.get("rope_theta") is not None:
        yield Key("rope.freq_base_swa", local["rope_theta"], number)


class GgufTensors:
    """The tensors of one model: names in GGUF files, and what is changed on the way.

    Args:
        family: of the model.
        config: its config.
    """

    def __init__(self, family: GgufFamily, config: Config) -> None:
        architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
        self._names = gguf.get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
        self._family, self._config = family, config

    def name(self, parameter: str) -> str | None:
        """Return a parameter's name in a GGUF file; None for one that llama.cpp takes from others.

        Args:
            parameter: as transformers names it.

        Raises:
            UserError: llama.cpp's architecture has no such tensor.
        """
        if parameter in self._family.left_out:
            return None
        found = self._names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"llama.cpp has no place for {parameter} in a model of the architecture {self._family.architecture}",
                suggestion=_INSTEAD,
            )
        return str(found)

    def rows(self, parameter: str, count: int) -> Tensor | None:
        """Return the order of a tensor's rows in the file, as indices of the model's rows; None keeps them."""
        if not self._family.reorders_rotary:
            return None
        heads = int(self._config["num_attention_heads"])
        if parameter.endswith(("k_proj.weight", "k_proj.bias")):
            heads = int(self._config.get("num_key_value_heads") or heads)
        elif not parameter.endswith(("q_proj.weight", "q_proj.bias")):
            return None
        return torch.arange(count).reshape(heads, 2, count // heads // 2).swapaxes(1, 2).reshape(-1)

    def values(self, parameter: str, tensor: Tensor) -> Tensor:
        """Return a tensor's values in the file.

        Args:
            parameter: as transformers names it.
            tensor: float32.
        """
        rows = self.rows(parameter, len(tensor))
        if rows is not None:
            tensor = tensor[rows]
        if self._family.norm_shift and parameter.endswith("norm.weight"):
            tensor = tensor + self._family.norm_shift
        return tensor


def rotary_factors(family: GgufFamily, config: Config) -> dict[str, Tensor]:
    """Return tensors by their names in the file with the divisors of the rotation's frequencies, (rotated / 2,)."""
    rotation = config.get("rope_parameters") or {}
    kind = rotation.get("rope_type")
    if kind not in family.rotary_kinds:
        return {}
    if kind == "longrope":
        lengths = ("long", "short")
        factors = {length: torch.tensor(rotation[f"{length}_factor"], dtype=torch.float32) for length in lengths}
        return {f"rope_factors_{length}.weight": values for length, values in factors.items()}
    return {"rope_freqs.weight": _llama3_factors(rotation, _head_size(config))} if kind == "llama3" else {}


def _llama3_factors(rotation: dict[str, Any], size: int) -> Tensor:
    """Return the divisors that Llama 3.1 and later have: the formula of transformers' `_compute_llama3_parameters`."""
    frequencies = 1.0 / (rotation["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    factor, low, high = (rotation[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    length = rotation["original_max_position_embeddings"]
    found = []
    for frequency in frequencies:
        wave = 2 * math.pi / frequency
        if wave < length / high:
            found.append(1.0)
        elif wave > length / low:
            found.append(factor)
        else:
            share = (length / wave - low) / (high - low)
            found.append(1 / ((1 - share) / factor + share))
    return torch.tensor(found, dtype=torch.float32)
