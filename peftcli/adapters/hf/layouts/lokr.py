"""LoKr in HF peft's layout: the same matrices, whole or as pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat
from peftcli.errors import UserError
from peftcli.methods.lokr import SUFFIXES, LoKrParams

_SAME = ("rank_dropout", "rank_dropout_scale", "module_dropout", "decompose_both", "decompose_factor")


class LoKrFormat(HfFormat[LoKrParams]):
    """LoKr."""

    peft_type = "LOKR"

    def why_not(self, params: LoKrParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold it: slices, or Conv1D, which its LoKr does not know."""
        return hf_files.sliced(meta) or hf_files.transposed(meta)

    def config(self, params: LoKrParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json; ranks and alphas are written by full path, because HF peft has no roles."""
        ranks = {target.module: params.rank_of(target.role, target.key) for target in meta.targets}
        alphas = {target.module: params.alpha_of(target.role, target.key) for target in meta.targets}
        changes = {
            "r": params.r,
            "alpha": params.alpha,
            "init_weights": True,
            "use_effective_conv2d": False,
            "target_modules": list(meta.target_names),
            "rank_pattern": {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != params.r},
            "alpha_pattern": {f"^{re.escape(path)}": value for path, value in alphas.items() if value != params.alpha},
        }
        return hf_files.common_config(meta, self.peft_type) | {name: getattr(params, name) for name in _SAME} | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a LoKr directory that HF peft wrote.

        A matrix that is trained whole shows no rank, so ranks and alphas are those of HF peft's matching rules.

        Raises:
            UserError: a convolution's tensor, or a foreign key.
        """
        if any(key.endswith(".lokr_t2") for key in tensors):
            raise UserError(f"{where} changes convolutions, which have no counterpart here")
        state, notes = hf_files.own_keys(tensors, where)
        endings = tuple(f".{suffix}" for suffix in SUFFIXES)
        keys = dict.fromkeys(key.rpartition(".")[0] for key in state if key.endswith(endings))
        whole = hf_files.whole_modules((key for key in state if not key.endswith(endings)), config)
        given = {name: config[name] for name in _SAME if config.get(name) is not None}
        rank, alpha = int(config.get("r", 8)), config.get("alpha", 8)
        ranks = {key: hf_files.first_match(config.get("rank_pattern") or {}, key, rank) for key in keys}
        alphas = {key: hf_files.first_match(config.get("alpha_pattern") or {}, key, alpha) for key in keys}
        params = LoKrParams(
            **given,
            r=rank,
            alpha=alpha,
            rank_pattern={f"^{re.escape(key)}": value for key, value in ranks.items() if value != rank},
            alpha_pattern={f"^{re.escape(key)}": value for key, value in alphas.items() if value != alpha},
            target_modules=list(keys),
            modules_to_save=whole or None,
        )
        targets = hf_files.foreign_targets(config, keys)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))
