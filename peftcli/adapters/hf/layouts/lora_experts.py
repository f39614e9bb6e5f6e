"""LoRA on experts in HF peft's layout: its `target_parameters`, and the keys of the wrappers that it nests.

HF peft wraps a module once for each of its parameters that is changed, in the order in which the module has them. The
first is the innermost: with two of them, its keys are `M.base_layer.lora_A.weight`, and those of the last
`M.lora_A.weight`. A file names no parameter, so the config's `target_parameters` must tell which they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.format import AdapterMeta, SavedTarget
from peftcli.adapters.hf.hf_files import first_match
from peftcli.adapters.hf.parameter_names import experts_in
from peftcli.adapters.hf.slices import feature_numbers
from peftcli.adapters.hf.taken_for_experts import taken_for_experts
from peftcli.errors import UserError
from peftcli.layers.expert_parts.expert_delta import expert_factors, joined_factors
from peftcli.methods.lora import LoraParams

_PAIR = ("lora_A.weight", "lora_B.weight")
_WEIGHT = ".weight"
_WRAPPED = re.compile(r"(?P<module>.+?)(?P<inside>(?:\.base_layer)*)\.lora_[AB]\.weight")


def expert_targets(meta: AdapterMeta) -> list[SavedTarget]:
    """Return the targets that are 3-D parameters of experts, in the order in which their modules have them."""
    return [target for target in meta.targets if target.kind == "experts"]


def some_experts(params: LoraParams, meta: AdapterMeta) -> str | None:
    """Return why HF peft cannot hold a LoRA on some of the experts as it is, or None."""
    if params.experts_to_transform is None or not expert_targets(meta):
        return None
    return "experts_to_transform leaves experts out, and HF peft changes all of a parameter"


def dora_of_experts(params: LoraParams, meta: AdapterMeta) -> str | None:
    """Return why HF peft cannot hold a DoRA on experts, or on what it takes for experts; None if it can."""
    if not params.use_dora:
        return None
    if expert_targets(meta):
        return "it is a DoRA of experts in 3-D parameters, which HF peft does not support"
    names = sorted({target.module.rpartition(".")[2] for target in taken_for_experts(meta)})
    return f"it is a DoRA of {', '.join(names)}, which HF peft takes for experts of this model" if names else None


def wrapped_keys(paths: Iterable[str]) -> dict[str, str]:
    """Return HF peft's path for the tensors of each changed parameter, by the parameter's path.

    Args:
        paths: of the changed parameters, in the order in which their modules have them.
    """
    modules: dict[str, list[str]] = {}
    for path in paths:
        modules.setdefault(path.rpartition(".")[0], []).append(path)
    return {
        path: module + ".base_layer" * (len(inside) - 1 - number)
        for module, inside in modules.items()
        for number, path in enumerate(inside)
    }


def file_names(meta: AdapterMeta, names: Iterable[str]) -> dict[str, str]:
    """Return HF peft's name for each of our names that lies in a module of experts: factors, and trained biases."""
    places = wrapped_keys(target.key for target in expert_targets(meta))
    depths = [path.rpartition(".")[0] for path in places]
    found = {f"{path}.{suffix}": f"{key}.{suffix}" for path, key in places.items() for suffix in _PAIR}
    for name in names:
        module, _, parameter = name.rpartition(".")
        if module in depths and name not in found:
            found[name] = f"{module}{'.base_layer' * depths.count(module)}.{parameter}"
    return found


@dataclass(frozen=True)
class WholeExperts:
    """A LoRA whose experts are changed in whole parameters, all experts of each.

    Args:
        state: its tensors by our keys.
        meta: the record.
        ranks, alphas: HF's rank_pattern and alpha_pattern of these parameters.
    """

    state: dict[str, Tensor]
    meta: AdapterMeta
    ranks: dict[str, int]
    alphas: dict[str, float]


def whole_experts(state: Mapping[str, Tensor], params: LoraParams, meta: AdapterMeta) -> WholeExperts:
    """Return each parameter's roles as one pair for every expert: equal, of the sum of the roles' ranks.

    Experts that were left out get a pair of zeros.
    """
    left = dict(state)
    places: dict[str, list[SavedTarget]] = {}
    for target in expert_targets(meta):
        places.setdefault(target.module, []).append(target)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    targets = {target.key: target for target in meta.targets}
    for path, roles in places.items():
        parts = [_part(left, params, role) for role in roles]
        a, b = joined_factors([_stacked(parts, expert) for expert in range(roles[0].experts or 0)])
        left[f"{path}.{_PAIR[0]}"], left[f"{path}.{_PAIR[1]}"] = a, b
        rank = sum(part.rank for part in parts)
        ranks[f"^{re.escape(path)}"] = rank
        alphas[f"^{re.escape(path)}"] = parts[0].scale * (rank**0.5 if params.use_rslora else rank)
        for role in roles:
            del targets[role.key]
        targets[path] = replace(roles[0], key=path, role=None, slice=None)
    return WholeExperts(left, replace(meta, targets=tuple(targets.values())), ranks, alphas)


@dataclass(frozen=True)
class _Part:
    """One role's pairs by expert, its scale, and the numbers of its output features within the parameter."""

    pairs: Mapping[int, tuple[Tensor, Tensor]]
    rank: int
    scale: float
    features: Tensor | None
    width: int


def _part(state: dict[str, Tensor], params: LoraParams, role: SavedTarget) -> _Part:
    a, b = (state.pop(f"{role.key}.{suffix}") for suffix in _PAIR)
    numbers = sorted(params.experts or range(role.experts or 0))
    rank = len(a) // len(numbers)
    features = feature_numbers(role) if role.slice else None
    width = role.slice[0] * role.slice[1] if role.slice else len(b)
    pairs = dict(zip(numbers, zip(*expert_factors(a, b, rank), strict=True), strict=True))
    return _Part(pairs, rank, params.scale_of(role.role, role.key, rank), features, width)


def _stacked(parts: Sequence[_Part], expert: int) -> tuple[Tensor, Tensor]:
    """Return one expert's A, (sum of ranks, in), and B, (whole width, sum of ranks)."""
    first_a, first_b = next(iter(parts[0].pairs.values()))
    every_a, every_b = [], []
    for part in parts:
        a, b = part.pairs.get(expert, (first_a.new_zeros(part.rank, first_a.shape[1]), None))
        columns = first_b.new_zeros(part.width, part.rank)
        if b is not None:
            columns[slice(None) if part.features is None else part.features] = b * (part.scale / parts[0].scale)
        every_a.append(a)
        every_b.append(columns)
    return torch.cat(every_a), torch.cat(every_b, dim=1)


def read_experts(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: Path
) -> tuple[dict[str, Tensor], tuple[SavedTarget, ...]]:
    """Return HF peft's tensors by our keys, but with its prefix and other keys as they are, and the experts' targets.

    Args:
        tensors: of the file, without HF peft's prefix.
        config: its adapter_config.json.
        where: the directory, for messages.

    Raises:
        UserError: the names in `target_parameters` and the keys do not agree.
    """
    names = sorted(experts_in(config))
    if not names:
        return dict(tensors), ()
    depths: dict[str, int] = {}
    for key in tensors:
        found = _WRAPPED.fullmatch(key)
        if found and not _is_module(config, found["module"]) and any(_holds(name, found["module"]) for name in names):
            depths[found["module"]] = max(depths.get(found["module"], 0), found["inside"].count(".base_layer"))
    places: dict[str, str] = {}
    for module, depth in depths.items():
        inside = sorted({name.rpartition(".")[2] for name in names if _holds(name, module)}, key=_place_in_module)
        if len(inside) != depth + 1:
            raise UserError(
                f"{where / CONFIG}: target_parameters names {', '.join(inside)}, and the file has {depth + 1} changes "
                f"at {module}",
                suggestion="save or download the adapter again",
            )
        places |= wrapped_keys(f"{module}.{name}" for name in inside)
    renamed = {f"{key}.{suffix}": f"{path}.{suffix}" for path, key in places.items() for suffix in _PAIR}
    inner = {f"{module}{'.base_layer' * (depth + 1)}.": f"{module}." for module, depth in depths.items()}
    biases = [(key, start) for key in tensors for start in inner if key.startswith(start)]
    renamed |= {key: inner[start] + key.removeprefix(start) for key, start in biases}
    state = {renamed.get(key, key): tensor for key, tensor in tensors.items()}
    return state, tuple(_target(state, config, path, where) for path in places)


def _holds(name: str, module: str) -> bool:
    """Tell whether a name of `target_parameters` may be a parameter of this module: its path ends as the name says."""
    inside = name.rpartition(".")[0]
    return not inside or module == inside or module.endswith(f".{inside}")


def _is_module(config: Mapping[str, Any], module: str) -> bool:
    """Tell whether a path is a target by HF peft's rule, as a module or by its weight: then it holds no experts."""
    named = config.get("target_modules") or ()
    own = re.fullmatch(named, module) is not None if isinstance(named, str) else _ends_with(module, named)
    return own or _by_weight(config, module)


def pattern_key(config: Mapping[str, Any], module: str) -> str:
    """Return what HF peft compares with the names in rank_pattern and alpha_pattern: a changed module's path, with
    `.weight` behind it where the config names its weight among `target_parameters`.
    """
    return f"{module}{_WEIGHT}" if _by_weight(config, module) else module


def _by_weight(config: Mapping[str, Any], module: str) -> bool:
    names = config.get("target_parameters") or ()
    return _ends_with(module, [name.removesuffix(_WEIGHT) for name in names if name.endswith(_WEIGHT)])


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _place_in_module(name: str) -> tuple[bool, str]:
    """Order the parameters of experts as transformers' modules have them: what leads into an expert comes first."""
    return name.startswith("down"), name


def _target(state: Mapping[str, Tensor], config: Mapping[str, Any], path: str, where: Path) -> SavedTarget:
    a, b = (state.get(f"{path}.{suffix}") for suffix in _PAIR)
    rank = first_match(config.get("rank_pattern") or {}, path, config.get("r", 8))
    if a is None or b is None or not isinstance(rank, int) or len(a) % rank or b.shape[1] != len(a):
        raise UserError(
            f"{where}: the factors of {path} are no pairs of rank {rank}",
            suggestion="save or download the adapter again",
        )
    return SavedTarget(path, path, None, "experts", experts=len(a) // rank)
