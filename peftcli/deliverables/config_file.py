"""The config.json of a model that leaves: what transformers writes, with the names that transformers 4 reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.deliverables.carried_files import read_object, write_object
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.errors import UserError
from peftcli.models.load.load_model import load_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "config.json"
_NOT_CARRIED = ("quantization_config", "transformers_version", "torch_dtype", "auto_map")


def restore_padding(config: PretrainedConfig, leaving: LeavingModel) -> None:
    """Put back the base's padding token where the task does not need that of training.

    A classifier keeps it: its pooling looks for it. So does a model whose recipe added the token.
    """
    token = leaving.tokenizer.pad_token
    if not leaving.info.generates or token in leaving.spec.new_tokens:
        return
    try:
        fresh = load_config(leaving.spec)
    except UserError:
        return
    parts = [(config, fresh)]
    if config.get_text_config() is not config:
        parts.append((config.get_text_config(), fresh.get_text_config()))
    for part, own in parts:
        if "pad_token_id" in vars(own):
            part.pad_token_id = own.pad_token_id
        elif "pad_token_id" in vars(part):
            del part.pad_token_id


def make_readable(path: Path, config: PretrainedConfig, leaving: LeavingModel) -> None:
    """Add to a config.json the names under which transformers 4 looks for its values.

    Transformers 5 moved some: `rope_theta` and `rope_scaling` are in `rope_parameters`. What the base's file has of
    such names comes back, and rotary settings get their old names anyway. If the file would then be read as another
    model by this transformers, it stays as it was.

    Args:
        path: of a config.json that transformers wrote.
        config: the model's.
        leaving: names the base's file.
    """
    written = read_object(path)
    base = leaving.settings_of_base(CONFIG)
    full = config.to_dict()
    better = _with_old_names(written, full, base)
    if isinstance(base.get("auto_map"), dict):
        better["auto_map"] = base["auto_map"]
    if better != written and _same_model(config, better, written):
        write_object(path, better)


def _with_old_names(written: Mapping[str, Any], full: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, and each part of it, with the base's own old names and those of its rotary settings."""
    better = dict(written)
    for key, value in base.items():
        if key not in full and key not in _NOT_CARRIED and not key.startswith("_"):
            better[key] = value
    if "torch_dtype" in base and written.get("dtype") is not None:
        better["torch_dtype"] = written["dtype"]
    for key, value in _rotary_names(full.get("rope_parameters")).items():
        better.setdefault(key, value)
    for key, value in written.items():
        if isinstance(value, dict) and isinstance(full.get(key), dict) and "model_type" in value:
            inner = base.get(key)
            better[key] = _with_old_names(value, full[key], inner if isinstance(inner, dict) else {})
    return better


def _rotary_names(parameters: Any) -> dict[str, Any]:
    """Return rotary settings under the names of transformers 4."""
    if not isinstance(parameters, dict):
        return {}
    nested = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    whole = nested.get("full_attention", {}) if nested else parameters
    names = {key: whole[key] for key in ("rope_theta", "partial_rotary_factor") if whole.get(key) is not None}
    if whole.get("rope_type", "default") != "default":
        names["rope_scaling"] = {key: value for key, value in whole.items() if key not in names}
    local = nested.get("sliding_attention", {}).get("rope_theta")
    if local is not None:
        names["rope_local_base_freq"] = names["local_rope_theta"] = local
        names["global_rope_theta"] = names.get("rope_theta")
    return names


def _same_model(config: PretrainedConfig, better: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """Tell whether transformers reads both files as the same settings, the added names aside."""

    def read(data: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = type(config).from_dict(_with_floats(dict(data))).to_dict()
        return settings

    mine = read(written)
    try:
        theirs = read(better)
    except Exception:  # a family's code may refuse the old names (Gemma 4 with `rope_scaling`), each in its own way
        return False
    return bool(_without_added(theirs, mine) == mine)


def _with_floats(data: Any) -> Any:
    """Return a copy of a file's values with `{"__float__": "Infinity"}`, as transformers writes it, as the number."""
    if isinstance(data, dict):
        tagged = list(data) == ["__float__"]
        return float(data["__float__"]) if tagged else {key: _with_floats(value) for key, value in data.items()}
    return [_with_floats(value) for value in data] if isinstance(data, list) else data


def _without_added(data: Any, like: Any) -> Any:
    """Return nested settings without the keys that `like` does not have."""
    if isinstance(data, dict) and isinstance(like, dict):
        return {key: _without_added(value, like[key]) for key, value in data.items() if key in like}
    return data
