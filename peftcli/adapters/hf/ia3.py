"""(IA)3 in HF peft's layout: the same vectors of the same shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.hf import hf_files as hf_common
from peftcli.methods.ia3 import IA3Params


def why_not(_params: IA3Params, meta: AdapterMeta, _state: Mapping[str, Tensor]) -> str | None:
    """Return why HF peft cannot hold this adapter as it is."""
    return hf_common.sliced(meta)


def config(_params: IA3Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return adapter_config.json; which places have their input rescaled is told by the vectors' shapes."""
    inner = [target.module for target in meta.targets if len(state[f"{target.key}.ia3_l"]) == 1]
    outer = [target.module for target in meta.targets if target.module not in inner]
    names = list(meta.target_names)
    inputs = [name for name in names if any(f".{path}".endswith(f".{name}") for path in inner)]
    # HF compares by ending, without a dot between: a name that also fits an output place would turn it around
    if any(path.endswith(tuple(inputs)) for path in outer):
        names, inputs = [target.module for target in meta.targets], inner
    changes = {"target_modules": names, "feedforward_modules": inputs, "init_ia3_weights": True}
    return hf_common.common_config(meta, "IA3") | hf_common.targeted_config(meta) | changes


def to_file(state: Mapping[str, Tensor], _params: IA3Params, _meta: AdapterMeta) -> dict[str, Tensor]:
    """Return the tensors by HF peft's keys."""
    return hf_common.add_prefix(state)


def from_file(
    tensors: Mapping[str, Tensor], _params: IA3Params, _meta: AdapterMeta, _config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors by our keys."""
    return hf_common.drop_prefix(tensors)


def read(
    config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path
) -> tuple[IA3Params, dict[str, Tensor], AdapterMeta, tuple[str, ...]]:
    """Read an (IA)3 directory that HF peft wrote.

    Raises:
        UserError: an unknown task type or a foreign key.
    """
    state, notes = hf_common.own_keys(tensors, where)
    keys = hf_common.keys_of(state, ("ia3_l",), where)
    whole = hf_common.whole_modules((key for key in state if not key.endswith(".ia3_l")), config)
    params = IA3Params(
        target_modules=list(keys),
        feedforward_modules=[key for key in keys if len(state[f"{key}.ia3_l"]) == 1],
        modules_to_save=whole or None,
    )
    targets = hf_common.foreign_targets(config, keys)
    return params, state, hf_common.foreign_record(config, where, targets=targets, whole=whole), tuple(notes)
