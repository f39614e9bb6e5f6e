"""VeRA in HF peft's layout. The shared random matrices are not in the file: both sides draw them from the seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import hf_files as hf_common
from peftcli.errors import UserError
from peftcli.layers.parts.vera import random_projections
from peftcli.methods.vera import VeraParams

_SUFFIXES = ("vera_lambda_b", "vera_lambda_d")
_PROJECTIONS = ("base_model.vera_A", "base_model.vera_B")


def why_not(_params: VeraParams, meta: AdapterMeta, _state: Mapping[str, Tensor]) -> str | None:
    """Return why HF peft cannot hold this adapter: on a slice B would start at the slice, in HF peft at the module."""
    return hf_common.sliced(meta)


def config(params: VeraParams, meta: AdapterMeta, _state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return adapter_config.json."""
    changes = {
        "r": params.r,
        "projection_prng_key": params.projection_prng_key,
        "save_projection": False,
        "vera_dropout": params.vera_dropout,
        "d_initial": params.d_initial,
        "bias": "none",
        "init_weights": True,
    }
    return hf_common.common_config(meta, "VERA") | hf_common.targeted_config(meta) | changes


def to_file(state: Mapping[str, Tensor], _params: VeraParams, _meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by HF peft's keys."""
    return hf_common.add_prefix(state)


def from_file(
    tensors: Mapping[str, Tensor], _params: VeraParams, _meta: AdapterMeta, _config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors by our keys."""
    return hf_common.drop_prefix(tensors)


def read(
    config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path
) -> tuple[VeraParams, dict[str, Tensor], AdapterMeta, tuple[str, ...]]:
    """Read a VeRA directory that HF peft wrote.

    Raises:
        UserError: biases, or random matrices in the file that its seed does not give.
    """
    hf_common.refuse_options(config, ("bias",), where)
    seed = int(config.get("projection_prng_key") or 0)
    _check_projections(tensors, seed, where)
    rest = {key: tensor for key, tensor in tensors.items() if key not in _PROJECTIONS}
    state, notes = hf_common.own_keys(rest, where)
    keys = hf_common.keys_of(state, _SUFFIXES, where)
    whole = hf_common.whole_modules((key for key in state if not key.endswith(_SUFFIXES)), config)
    params = VeraParams(
        r=int(config.get("r", 256)),
        projection_prng_key=seed,
        d_initial=float(config.get("d_initial", 0.1)),
        vera_dropout=float(config.get("vera_dropout") or 0.0),
        target_modules=list(keys),
        modules_to_save=whole or None,
    )
    targets = hf_common.foreign_targets(config, keys)
    return params, state, hf_common.foreign_record(config, where, targets=targets, whole=whole), tuple(notes)


def _check_projections(tensors: Mapping[str, Tensor], seed: int, where: Path) -> None:
    if not all(key in tensors for key in _PROJECTIONS):
        return
    a, b = (tensors[key].float() for key in _PROJECTIONS)
    own_a, own_b = random_projections(len(a), a.shape[1], len(b), seed)
    if not (torch.equal(a, own_a) and torch.equal(b, own_b)):
        raise UserError(
            f"{where}: its random matrices are not those of projection_prng_key {seed}, and this project draws them "
            "from the seed alone",
            suggestion="merge it in HF peft (merge_and_unload), or export it there with the seed's own matrices",
        )
