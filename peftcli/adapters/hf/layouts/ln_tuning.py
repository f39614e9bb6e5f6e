"""LayerNorm tuning in HF peft's layout: the same tensors below `ln_tuning_layers`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_format import HfFormat, State
from peftcli.errors import UserError
from peftcli.methods.ln_tuning import LNTuningParams

_INSIDE = ".ln_tuning_layers."


class LNTuningFormat(HfFormat[LNTuningParams]):
    """LayerNorm tuning."""

    peft_type = "LN_TUNING"

    def config(self, params: LNTuningParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json; norms are named by full paths, which match nothing else."""
        return hf_files.common_config(meta, self.peft_type) | {"target_modules": _norms(meta, state)}

    def to_file(self, state: Mapping[str, Tensor], params: LNTuningParams, meta: AdapterMeta) -> State:
        """Return the tensors by HF peft's keys."""
        norms = set(_norms(meta, state))
        own = {_below(key) if key.rpartition(".")[0] in norms else key: tensor for key, tensor in state.items()}
        return hf_files.add_prefix(own)

    def from_file(
        self, tensors: Mapping[str, Tensor], params: LNTuningParams, meta: AdapterMeta, config: Mapping[str, Any]
    ) -> State:
        """Return the tensors by our keys."""
        return {key.replace(_INSIDE, "."): tensor for key, tensor in hf_files.drop_prefix(tensors).items()}

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a directory that HF peft wrote.

        Raises:
            UserError: an unknown task type, a foreign key, or not a single trained norm.
        """
        state, notes = hf_files.own_keys(tensors, where)
        norms = list(dict.fromkeys(key.partition(_INSIDE)[0] for key in state if _INSIDE in key))
        if not norms:
            raise UserError(f"{where} holds not a single {_INSIDE.strip('.')}")
        whole = hf_files.whole_modules((key for key in state if _INSIDE not in key), config)
        params = LNTuningParams(target_modules=norms, modules_to_save=whole or None)
        meta = hf_files.foreign_record(config, where, whole=whole)
        own = {key.replace(_INSIDE, "."): tensor for key, tensor in state.items()}
        return SavedAdapter(params, own, meta, tuple(notes))


def _norms(meta: AdapterMeta, state: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of the norms that the method trained: what lies below no module that is saved whole."""
    whole = tuple(f"{path}." for path in hf_files.saved_whole(meta))
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state if not key.startswith(whole)))


def _below(key: str) -> str:
    module, _, parameter = key.rpartition(".")
    return f"{module}{_INSIDE}{parameter}"
