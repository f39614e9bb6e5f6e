"""LoRA in AdapterHub's format, both ways: the same projections in every layer, one rank, one scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.adapterhub.hub_places import NAME, check_family, refuse_set
from peftcli.adapters.base_shape import Base
from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.initial_pairs import one_pair
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from peftcli.models.anatomy import Anatomy, LinearRole
from peftcli.recipe.method_params import MethodParams

_PLAIN: dict[str, Any] = {
    "composition_mode": "add",
    "use_gating": False,
    "use_dora": False,
    "vera_d": None,
    "vera_b": None,
}
# What the library calls intermediate and output; its Llama and Mistral have the two the other way round.
_FFN = {"ffn.up": "intermediate_lora", "ffn.down": "output_lora"}
_FFN_TURNED = {"ffn.down": "intermediate_lora", "ffn.up": "output_lora"}
_WITH_OUTPUT = ("qwen2", "qwen3")  # reached through its interface, which also knows the attention's output
_FUSED_ORDER = ("q", "k", "v")


def write_lora(
    params: MethodParams, state: Mapping[str, Tensor], meta: AdapterMeta, base: Base, _where: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return AdapterHub's inner config and tensors; see `HubFormat`.

    Raises:
        UserError: variants, several ranks or scales, or projections that its options do not name.
    """
    assert isinstance(params, LoraParams)  # the table's methods
    anatomy = base.anatomy
    check_family(anatomy)
    if params.use_dora or params.bias != "none":
        what = "use_dora" if params.use_dora else f"bias: {params.bias}"
        raise UserError(
            f"{what} has no counterpart in AdapterHub's format", suggestion="use --to hf-peft, or peft merge"
        )
    factor = 2 if params.starts_from_base else 1
    plain = one_pair(state, params)
    pairs = {
        (params.rank_of(t.role, t.key), params.scale_of(t.role, t.key, params.rank_of(t.role, t.key)))
        for t in meta.targets
    }
    if len(pairs) != 1:
        raise UserError(
            "AdapterHub's LoRA has one rank and one scale for all places (rank_pattern, alpha_pattern)",
            suggestion="use --to hf-peft, or peft merge",
        )
    rank, scale = pairs.pop()
    inner = _places(meta, anatomy)
    alpha = scale * rank * factor
    inner |= {
        "architecture": "lora",
        "r": rank * factor,
        "alpha": int(alpha) if alpha == int(alpha) else alpha,
        "dropout": params.lora_dropout,
        "init_weights": "lora",
        "init_weights_seed": None,
        "dtype": None,
        **_PLAIN,
    }
    return inner, _to_file(plain, meta)


def _places(meta: AdapterMeta, anatomy: Anatomy) -> dict[str, Any]:
    """Return the options that name exactly these targets."""
    roles = {target.role for target in meta.targets}
    flags = _ffn_flags(anatomy)
    matrices = sorted({str(role).split(".")[1] for role in roles if role and role.split(".")[0].endswith("attn")})
    known = ("q", "k", "v", "o") if anatomy.family in _WITH_OUTPUT else ("q", "k", "v")
    foreign = [str(t.role or t.module) for t in meta.targets if not _is_known(t.role, known, flags)]
    if foreign:
        raise UserError(
            f"AdapterHub's LoRA has no option for {', '.join(dict.fromkeys(foreign))} in a {anatomy.family} model",
            suggestion="use --to hf-peft, or peft merge",
        )
    named = {target.key for target in meta.targets}
    left_out = sorted({_layer(linear, anatomy) for linear in anatomy.linears} - _layers(named, anatomy))
    implied = {
        linear.key
        for linear in anatomy.linears
        if _implied(linear.role, matrices, roles, flags) and _layer(linear, anatomy) not in left_out
    }
    if implied != named:
        other = sorted(implied ^ named)
        raise UserError(
            "AdapterHub's LoRA takes the same projections in every layer, cross-attention with self-attention; these "
            f"targets differ from that at {', '.join(other[:3])}",
            suggestion="use --to hf-peft, or peft merge",
        )
    options = {option: role in roles for role, option in flags.items()}
    return {"selfattn_lora": bool(matrices), "attn_matrices": matrices, "leave_out": left_out, **options}


def _ffn_flags(anatomy: Anatomy) -> dict[str, str]:
    return _FFN_TURNED if anatomy.family in ("llama", "mistral") else _FFN


def _is_known(role: str | None, matrices: tuple[str, ...], flags: Mapping[str, str]) -> bool:
    return role in flags or (role is not None and "attn." in role and role.split(".")[1] in matrices)


def _implied(role: str, matrices: list[str], roles: set[str | None], flags: Mapping[str, str]) -> bool:
    return role.split(".")[1] in matrices if "attn." in role else role in flags and role in roles


def _layer(linear: LinearRole, anatomy: Anatomy) -> int:
    """Return the block's number as the library counts: encoder blocks first, then decoder blocks."""
    before = len(anatomy.layers.get("encoder", ())) if linear.stack == "decoder" else 0
    return before + linear.layer


def _layers(keys: set[str], anatomy: Anatomy) -> set[int]:
    return {_layer(linear, anatomy) for linear in anatomy.linears if linear.key in keys}


def _to_file(state: Mapping[str, Tensor], meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by AdapterHub's keys; slices of a fused projection are concatenated in the order q, k, v."""
    tensors: dict[str, Tensor] = {}
    fused: dict[str, list[str]] = {}
    for target in meta.targets:
        fused.setdefault(target.module, []).append(target.key)
    for module, keys in fused.items():
        ordered = sorted(keys, key=lambda key: _FUSED_ORDER.index(key[-1])) if len(keys) > 1 else keys
        for side in ("lora_A", "lora_B"):
            tensors[f"{module}.loras.{NAME}.{side}"] = torch.cat([state[f"{key}.{side}.weight"] for key in ordered])
    return tensors


def read_lora(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path, base: Base
) -> tuple[MethodParams, dict[str, Tensor], tuple[str, ...]]:
    """Read a LoRA that AdapterHub's library saved.

    Args:
        config: adapter_config.json.
        tensors: adapter.safetensors.
        where: their directory.
        base: the base model.

    Raises:
        UserError: (IA)3, VeRA, gates or DoRA, or a key that does not belong.
    """
    check_family(base.anatomy)
    inner = config["config"]
    refuse_set(inner, _PLAIN, where)
    between = f".loras.{config['name']}."
    foreign = [key for key in tensors if between not in key or not key.endswith((".lora_A", ".lora_B"))]
    if foreign:
        raise UserError(f"{where}: unexpected {', '.join(foreign[:3])}")
    rank = int(inner["r"])
    alpha, notes = _alpha(inner, str(config.get("version") or ""), rank)
    matrices = [name for name in _FUSED_ORDER if name in (inner.get("attn_matrices") or ())]
    slices = {linear.module for linear in base.anatomy.linears if linear.slice is not None}
    state: dict[str, Tensor] = {}
    places: dict[str, None] = {}
    for key, tensor in tensors.items():
        module, _, side = key.partition(between)
        if module in slices:
            if not matrices or len(tensor) % len(matrices):
                raise UserError(f"{where}: {key} has {len(tensor)} rows, which attn_matrices {matrices} do not divide")
            pieces = zip(matrices, tensor.chunk(len(matrices)), strict=True)
            state |= {f"{module}.{name}.{side}.weight": piece.contiguous() for name, piece in pieces}
            places.update(dict.fromkeys(f"attn.{name}" for name in matrices))
        else:
            state[f"{module}.{side}.weight"] = tensor
            places[module] = None
    fused_layers = {i for i, path in enumerate(base.anatomy.layers.get("decoder", ())) if _any_below(tensors, path)}
    params = LoraParams(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=float(inner.get("dropout") or 0.0),
        target_modules=list(places),
        layers_to_transform=sorted(fused_layers) if any(place.startswith("attn.") for place in places) else None,
    )
    return params, state, notes


def _any_below(tensors: Mapping[str, Tensor], path: str) -> bool:
    return any(key.startswith(f"{path}.") for key in tensors)


def _alpha(inner: Mapping[str, Any], version: str, rank: int) -> tuple[float, tuple[str, ...]]:
    """Return the alpha that training used: before 1.1 the library ignored alpha and scaled by 1."""
    alpha: float = inner.get("alpha", rank)
    numbers = version.removeprefix("adapters.").split(".")
    old = version.startswith("adapters.") and tuple(int(n) for n in numbers[:2] if n.isdigit()) < (1, 1)
    if old and alpha != rank:
        return rank, (f"trained with {version}, which ignored alpha = {alpha}; alpha is {rank} here, as in training",)
    return alpha, ()
