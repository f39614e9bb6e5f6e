"""MiSS in HF peft's layout: the same blocks. Which kind they are is told by `init_weights`, also when it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat
from peftcli.methods.miss import MissParams


class MissFormat(HfFormat[MissParams]):
    """MiSS."""

    peft_type = "MISS"

    def why_not(self, params: MissParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold it: slices, or Conv1D, which its MiSS does not know."""
        return hf_files.sliced(meta) or hf_files.transposed(meta)

    def config(self, params: MissParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json, without `fan_in_fan_out`, which HF peft's MiSS lacks."""
        changes = {
            "r": params.r,
            "miss_dropout": params.miss_dropout,
            "mini_r": params.mini_r,
            "init_weights": params.init_weights if isinstance(params.init_weights, str) else True,
            "bias": "none",
            "target_modules": list(meta.target_names),
        }
        return hf_files.common_config(meta, self.peft_type) | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a MiSS directory that HF peft wrote.

        Raises:
            UserError: biases, or a foreign key.
        """
        hf_files.refuse_options(config, ("bias",), where)
        state, notes = hf_files.own_keys(tensors, where)
        keys = hf_files.keys_of(state, ("miss_block",), where)
        whole = hf_files.whole_modules((key for key in state if not key.endswith(".miss_block")), config)
        kind = config.get("init_weights")
        params = MissParams.model_validate(
            {
                "r": int(config.get("r", 64)),
                "miss_dropout": float(config.get("miss_dropout") or 0.0),
                "mini_r": int(config.get("mini_r") or 1),
                "init_weights": kind if isinstance(kind, str) else True,
                "target_modules": list(keys),
                "modules_to_save": whole or None,
            }
        )
        targets = hf_files.foreign_targets(config, keys)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))
