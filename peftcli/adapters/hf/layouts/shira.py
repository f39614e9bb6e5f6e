"""SHiRA in HF peft's layout: the values, and their places beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat, State
from peftcli.methods.shira import ShiraParams

_SUFFIXES = ("shira_weight", "shira_indices")


class ShiraFormat(HfFormat[ShiraParams]):
    """SHiRA."""

    peft_type = "SHIRA"

    def why_not(self, params: ShiraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold it: slices, or Conv1D, which its SHiRA does not know."""
        return hf_files.sliced(meta) or hf_files.transposed(meta)

    def config(self, params: ShiraParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json; the places are in the file, so that HF peft's own kind of mask serves for all."""
        changes = {"r": params.r, "mask_type": "random", "random_seed": params.random_seed, "init_weights": True}
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a SHiRA directory that HF peft wrote.

        Raises:
            UserError: a missing or foreign key, or a place that no weight has.
        """
        state, notes = hf_files.own_keys(tensors, where)
        keys = hf_files.keys_of(state, _SUFFIXES, where)
        whole = hf_files.whole_modules((key for key in state if not key.endswith(_SUFFIXES)), config)
        params = ShiraParams(
            r=int(config.get("r", 32)),
            random_seed=config.get("random_seed"),
            target_modules=list(keys),
            modules_to_save=whole or None,
        )
        targets = hf_files.foreign_targets(config, keys)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, _whole_places(state), meta, tuple(notes))


def _whole_places(state: Mapping[str, Tensor]) -> State:
    """Return the tensors with places of int32; HF peft writes them as float32 on Windows."""
    return {key: tensor.int() if key.endswith(".shira_indices") else tensor for key, tensor in state.items()}
