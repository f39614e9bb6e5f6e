"""(IA)3 in HF peft's layout: the same vectors of the same shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFiles, HfFormat
from peftcli.adapters.hf.slices import feature_numbers, with_whole_targets
from peftcli.methods.ia3 import IA3Params


class IA3Format(HfFormat[IA3Params]):
    """(IA)3."""

    peft_type = "IA3"

    def why_not(self, params: IA3Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return that HF peft knows no slices of fused projections, and no (IA)3 of experts in 3-D parameters."""
        return _of_experts(meta) or hf_files.sliced(meta)

    def config(self, params: IA3Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json; the vectors' shapes tell which modules have their input rescaled."""
        inner = [target.module for target in meta.targets if len(state[f"{target.key}.ia3_l"]) == 1]
        outer = [target.module for target in meta.targets if target.module not in inner]
        names = list(meta.target_names)
        inputs = [name for name in names if any(f".{path}".endswith(f".{name}") for path in inner)]
        # HF compares endings without a dot in front: a name that also matches an output-rescaled module would flip it
        if any(path.endswith(tuple(inputs)) for path in outer):
            names, inputs = [target.module for target in meta.targets], inner
        changes = {"target_modules": names, "feedforward_modules": inputs, "init_ia3_weights": True}
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read an (IA)3 directory that HF peft wrote.

        Raises:
            UserError: an unknown task type or a foreign key.
        """
        state, notes = hf_files.own_keys(tensors, where)
        keys = hf_files.keys_of(state, ("ia3_l",), where)
        whole = hf_files.whole_modules((key for key in state if not key.endswith(".ia3_l")), config)
        params = IA3Params(
            target_modules=list(keys),
            feedforward_modules=[key for key in keys if len(state[f"{key}.ia3_l"]) == 1],
            modules_to_save=whole or None,
        )
        targets = hf_files.foreign_targets(config, keys)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))

    def whole_module_files(self, params: IA3Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> HfFiles | None:
        """Return one vector for each fused module."""
        if _of_experts(meta):
            return None
        padded, whole = _pad_vectors(state, meta)
        return HfFiles(self.config(params, whole, padded), self.to_file(padded, params, whole))


def _of_experts(meta: AdapterMeta) -> str | None:
    paths = [target.module for target in meta.targets if target.kind == "experts"]
    return f"{paths[0]} is a 3-D parameter of experts, which (IA)3 of HF peft does not take" if paths else None


def _pad_vectors(state: Mapping[str, Tensor], meta: AdapterMeta) -> tuple[dict[str, Tensor], AdapterMeta]:
    """Return tensors and record with one vector for each fused module: its slices' values, and 1 everywhere else."""
    padded = dict(state)
    for target in meta.targets:
        if target.slice is None:
            continue
        groups, width, _, _ = target.slice
        vector = padded.pop(f"{target.key}.ia3_l")
        whole = padded.setdefault(f"{target.module}.ia3_l", torch.ones(groups * width, 1, dtype=vector.dtype))
        whole[feature_numbers(target)] = vector
    return padded, with_whole_targets(meta)
