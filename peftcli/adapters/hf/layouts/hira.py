"""HiRA in HF peft's layout: the same factors, at one rank for all.

HF peft 0.21 has a `rank_pattern` and makes every pair of rank `r` all the same (its dispatcher reads the config).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat, State
from peftcli.methods.hira import HiraParams

_LINEAR = ("hira_A", "hira_B")
_TABLE = ("hira_embedding_A", "hira_embedding_B")
_OWN = (*_LINEAR, *_TABLE)


class HiraFormat(HfFormat[HiraParams]):
    """HiRA."""

    peft_type = "HIRA"

    def config(self, params: HiraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json, with the largest rank for all."""
        changes = {"r": _largest(params, meta), "hira_dropout": params.hira_dropout, "init_weights": True}
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def to_file(self, state: Mapping[str, Tensor], params: HiraParams, meta: AdapterMeta) -> State:
        """Return the tensors by HF peft's keys, smaller ranks filled up with zeros."""
        most = _largest(params, meta)
        return hf_files.add_prefix({key: _resized(key, tensor, most) for key, tensor in state.items()})

    def from_file(
        self, tensors: Mapping[str, Tensor], params: HiraParams, meta: AdapterMeta, config: Mapping[str, Any]
    ) -> State:
        """Return the tensors by our keys, each with its own rank; the inverse of `to_file`."""
        ranks = {target.key: params.rank_of(target.role, target.key) for target in meta.targets}
        state = hf_files.drop_prefix(tensors)
        return {key: _resized(key, tensor, ranks.get(key.rpartition(".")[0], 0)) for key, tensor in state.items()}

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a HiRA directory that HF peft wrote; ranks are those of the tensors.

        Raises:
            UserError: a missing or foreign key.
        """
        state, notes = hf_files.own_keys(tensors, where)
        found = [suffixes for suffixes in (_LINEAR, _TABLE) if any(key.endswith(suffixes) for key in state)]
        keys = {key: suffixes for suffixes in found or [_LINEAR] for key in hf_files.keys_of(state, suffixes, where)}
        whole = hf_files.whole_modules((key for key in state if not key.endswith(_OWN)), config)
        rank = int(config.get("r", 32))
        ranks = {key: len(state[f"{key}.{suffixes[0]}"]) for key, suffixes in keys.items()}
        params = HiraParams(
            r=rank,
            hira_dropout=float(config.get("hira_dropout") or 0.0),
            rank_pattern={f"^{re.escape(key)}": value for key, value in ranks.items() if value != rank},
            target_modules=list(keys),
            modules_to_save=whole or None,
        )
        tables = [key for key, suffixes in keys.items() if suffixes == _TABLE]
        targets = hf_files.foreign_targets(config, keys, tables=tables)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))


def _largest(params: HiraParams, meta: AdapterMeta) -> int:
    return max(params.rank_of(target.role, target.key) for target in meta.targets)


def _resized(key: str, tensor: Tensor, rank: int) -> Tensor:
    """Return a factor cut to a rank or filled up with zeros, which change no product; other tensors as they are."""
    if not key.endswith(_OWN):
        return tensor
    more = rank - tensor.shape[0 if key.endswith("_A") else 1]
    return F.pad(tensor, (0, 0, 0, more) if key.endswith("_A") else (0, more)).contiguous()
