"""AdaLoRA in HF peft's layout, read and written, and its exact conversion to plain LoRA.

HF's file holds the kept ranks only; `rank_pattern` tells its loader how many of the init_r ranks they are. In both
libraries the scale is alpha / (init_r + 1e-5), however many ranks were kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat, State
from peftcli.errors import UserError
from peftcli.layers.parts.svd_lora import TRIPLET, svd_scale
from peftcli.methods.adalora import AdaLoraParams
from peftcli.methods.lora import LoraParams

_UNREADABLE = ("bias", "use_dora", "use_rslora", "layer_replication", "trainable_token_indices", "target_parameters")


class AdaLoraFormat(HfFormat[AdaLoraParams]):
    """AdaLoRA, pruned or not."""

    peft_type = "ADALORA"
    remedy = "export it as plain LoRA, which is equal: --as lora"

    def config(self, params: AdaLoraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json.

        HF's loader refuses a config without total_step, even for inference, so the shortest schedule that it accepts is
        written here; the run's own schedule is in peftcli.json.
        """
        tinit, tfinal = params.tinit or 0, params.tfinal or 0
        kept = {target.module: len(state[f"{target.key}.lora_E"]) for target in meta.targets}
        pattern = {
            f"{module}.lora_E": [True] * count + [False] * (params.init_r - count) for module, count in kept.items()
        }
        changes = {
            "r": 8,  # HF's default: it ignores the value and warns of any other
            "init_r": params.init_r,
            "target_r": params.target_r,
            "lora_alpha": params.lora_alpha,
            "lora_dropout": params.lora_dropout,
            "bias": "none",
            "beta1": params.beta1,
            "beta2": params.beta2,
            "deltaT": params.deltaT or 1,
            "tinit": tinit,
            "tfinal": tfinal,
            "total_step": tinit + tfinal + 1,
            "orth_reg_weight": params.orth_reg_weight,
            "rank_pattern": pattern,
            "init_lora_weights": True,
        }
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read an AdaLoRA directory that HF peft wrote, pruned or not.

        Raises:
            UserError: an option that has no counterpart here, a missing tensor, or an unknown task type.
        """
        hf_files.refuse_options(config, _UNREADABLE, where)
        state, notes = hf_files.own_keys(tensors, where)
        keys = hf_files.keys_of(state, TRIPLET, where)
        whole = hf_files.whole_modules((key for key in state if not key.endswith(TRIPLET)), config)
        init_r = int(config.get("init_r", 12))
        params = AdaLoraParams(
            init_r=init_r,
            target_r=min(int(config.get("target_r", 8)), init_r),
            lora_alpha=float(config.get("lora_alpha", 8)),
            lora_dropout=float(config.get("lora_dropout") or 0.0),
            target_modules=list(keys),
            tinit=int(config.get("tinit") or 0),
            tfinal=int(config.get("tfinal") or 0),
            deltaT=int(config.get("deltaT") or 1),
            beta1=float(config.get("beta1", 0.85)),
            beta2=float(config.get("beta2", 0.85)),
            orth_reg_weight=float(config.get("orth_reg_weight", 0.5)),
            modules_to_save=whole or None,
        )
        targets = hf_files.foreign_targets(config, keys)
        kept = {key: _without_zeros(state, key, where) for key in keys}
        for tensors_of in kept.values():
            state.update(tensors_of)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))

    def as_lora(
        self, params: AdaLoraParams, meta: AdapterMeta, state: Mapping[str, Tensor]
    ) -> tuple[LoraParams, State]:
        """Return the same change as plain LoRA: A' = A * E, B' = B, and an alpha that gives each rank the same scale.

        A place that lost every rank gets a pair of rank 1 that is zero, since no LoRA has rank 0.
        """
        plain = dict(state)
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        scale = svd_scale(params.lora_alpha, params.init_r)
        for target in meta.targets:
            a, e, b = (plain.pop(f"{target.key}.{suffix}") for suffix in TRIPLET)
            if not len(e):
                a, e, b = a.new_zeros(1, a.shape[1]), e.new_zeros(1, 1), b.new_zeros(len(b), 1)
            plain[f"{target.key}.lora_A.weight"], plain[f"{target.key}.lora_B.weight"] = a * e, b
            path = f"^{re.escape(target.key)}"
            ranks[path], alphas[path] = len(a), scale * len(a)
        lora = LoraParams(
            r=max(ranks.values()),
            lora_alpha=scale * max(ranks.values()),
            lora_dropout=params.lora_dropout,
            target_modules=[target.key for target in meta.targets],
            rank_pattern=ranks,
            alpha_pattern=alphas,
            modules_to_save=params.modules_to_save,
            trainable_token_indices=params.trainable_token_indices,
        )
        return lora, plain


def _without_zeros(state: Mapping[str, Tensor], key: str, where: Path) -> dict[str, Tensor]:
    """Return one place's tensors without the ranks whose singular value is zero: our files do not hold those."""
    a, e, b = (state[f"{key}.{suffix}"] for suffix in TRIPLET)
    if a.ndim != 2 or b.ndim != 2 or e.shape != (len(a), 1) or b.shape[1] != len(a):
        found = ", ".join(str(tuple(tensor.shape)) for tensor in (a, e, b))
        raise UserError(f"{where}: {key} has shapes {found}; expected (k, in), (k, 1) and (out, k)")
    kept = torch.nonzero(e.flatten()).flatten()
    return {f"{key}.lora_A": a[kept], f"{key}.lora_E": e[kept], f"{key}.lora_B": b[:, kept]}
