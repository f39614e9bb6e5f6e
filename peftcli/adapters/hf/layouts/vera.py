"""VeRA in HF peft's layout. The shared random matrices are not saved: both libraries draw them from the seed.

A slice of a fused projection cannot be expressed: here its rows of B are counted from the slice's first feature, in
HF peft from the module's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.adapter_files import CONFIG
from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat
from peftcli.errors import UserError
from peftcli.layers.parts.vera import random_projections
from peftcli.methods.vera import VeraParams

_SUFFIXES = ("vera_lambda_b", "vera_lambda_d")
_PROJECTIONS = (f"{hf_files.PROMPT_PREFIX}vera_A", f"{hf_files.PROMPT_PREFIX}vera_B")


class VeraFormat(HfFormat[VeraParams]):
    """VeRA."""

    peft_type = "VERA"

    def config(self, params: VeraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
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
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a VeRA directory that HF peft wrote.

        Raises:
            UserError: biases, or random matrices in the file that its seed does not give.
        """
        hf_files.refuse_options(config, ("bias",), where)
        seed = int(config.get("projection_prng_key") or 0)
        _check_projections(tensors, seed, where)
        rest = {key: tensor for key, tensor in tensors.items() if key not in _PROJECTIONS}
        state, notes = hf_files.own_keys(rest, where)
        keys = hf_files.keys_of(state, _SUFFIXES, where)
        whole = hf_files.whole_modules((key for key in state if not key.endswith(_SUFFIXES)), config)
        rank = int(config.get("r", 256))
        others = [key for key in keys if len(state[f"{key}.vera_lambda_d"]) != rank]
        if others:
            raise UserError(f"{where / CONFIG}: r is {rank}, and {others[0]}.vera_lambda_d has another length")
        params = VeraParams(
            r=rank,
            projection_prng_key=seed,
            d_initial=float(config.get("d_initial", 0.1)),
            vera_dropout=float(config.get("vera_dropout") or 0.0),
            target_modules=list(keys),
            modules_to_save=whole or None,
        )
        targets = hf_files.foreign_targets(config, keys)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))


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
