"""OFT in HF peft's layout: the same entries above the diagonals, as its versions from 0.18 on have them."""

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
from peftcli.layers.weight_changes.rotation import block_size_of, within_bound
from peftcli.methods.oft import OftParams

_SUFFIXES = ("oft_R.weight", "oft_embedding_R.weight")
_OPTIONS = ("r", "oft_block_size", "module_dropout", "coft", "eps", "block_share", "use_cayley_neumann")
_TERMS = "num_cayley_neumann_terms"


class OftFormat(HfFormat[OftParams]):
    """OFT."""

    peft_type = "OFT"

    def why_not(self, params: OftParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold it: slices, or Conv1D, which its OFT does not know."""
        return hf_files.sliced(meta) or hf_files.transposed(meta)

    def config(self, params: OftParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json."""
        changes = {name: getattr(params, name) for name in (*_OPTIONS, _TERMS)}
        sizes = {block_size_of(tensor.shape[1]) for name, tensor in state.items() if name.endswith(_SUFFIXES)}
        if params.oft_block_size and len(sizes) == 1:
            changes["oft_block_size"] = sizes.pop()  # HF peft warns of a size that it has to adjust
        changes |= {"bias": "none", "init_weights": True, "peft_version": "0.18.0"}  # the first with this series
        return hf_files.common_config(meta, self.peft_type) | hf_files.targeted_config(meta) | changes

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read an OFT directory that HF peft wrote.

        Raises:
            UserError: biases, or a foreign key.
        """
        hf_files.refuse_options(config, ("bias",), where)
        state, notes = hf_files.own_keys(tensors, where)
        keys = dict.fromkeys(_module(key) for key in state if key.endswith(_SUFFIXES))
        whole = hf_files.whole_modules((key for key in state if not key.endswith(_SUFFIXES)), config)
        given = {name: config[name] for name in (*_OPTIONS, _TERMS) if config.get(name) is not None}
        params = OftParams(**given, target_modules=list(keys), modules_to_save=whole or None)
        if params.use_cayley_neumann and _older(config):
            notes.append(
                f"{where} is of an HF peft before 0.18, whose series for rotations (use_cayley_neumann) was a little "
                "different: its outputs differ from those of training, as in later HF peft"
            )
        if params.coft:  # it saves what the last step left, and shrinks it when it is used
            state = {
                key: within_bound(value.float(), params.eps) if key.endswith(_SUFFIXES) else value
                for key, value in state.items()
            }
        tables = [key for key in keys if f"{key}.oft_embedding_R.weight" in state]
        targets = hf_files.foreign_targets(config, keys, tables=tables)
        meta = hf_files.foreign_record(config, where, targets=targets, whole=whole)
        return SavedAdapter(params, state, meta, tuple(notes))


def _module(key: str) -> str:
    return next(key.removesuffix(f".{suffix}") for suffix in _SUFFIXES if key.endswith(suffix))


def _older(config: Mapping[str, Any]) -> bool:
    """Return whether a version before 0.18 wrote a config, the first that names its version and has today's series."""
    return tuple(int(part) for part in re.findall(r"\d+", str(config.get("peft_version") or ""))[:2]) < (0, 18)
