"""What a model's config.json says, read as plain data: for checks that must not import transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.models.families.decoders import DECODER_FAMILIES
from peftcli.models.families.encoder_decoders import SEQ2SEQ_FAMILIES
from peftcli.models.families.encoders import ENCODER_FAMILIES, OTHER_ENCODERS
from peftcli.suggestions import did_you_mean, nearest
from peftcli.tasks.task_info import ModelKind
from peftcli.tasks.task_table import task_info

Config = Mapping[str, Any]

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_NOT_TEXT = ("vit", "whisper")
OF_CERTAIN_LENGTHS = {
    "reformer": "in training its code takes rows of certain lengths only: of as many tokens as it has axial positions, "
    "or of a multiple of its attention's chunks"
}
"""Model types that rows of their own lengths cannot train, and why."""


def text_config(config: Config) -> Config:
    """Return the part of a config that describes the text model (`text_config` of multimodal ones)."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def number_of_layers(config: Config) -> int | None:
    """Return the number of blocks (of the larger stack in an encoder-decoder), if the config says it."""
    found = [_integer(config, name) for name in (*_LAYERS, "encoder_layers", "decoder_layers", "num_decoder_layers")]
    return max((count for count in found if count is not None), default=None)


def width(config: Config) -> int | None:
    """Return the width of the residual stream, if the config says it."""
    return _first(config, _WIDTH)


def positions(config: Config) -> int | None:
    """Return how many positions the model was made for, if the config says it."""
    return _first(config, _POSITIONS)


def _first(config: Config, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if (value := _integer(config, name)) is not None), None)


def _integer(config: Config, name: str) -> int | None:
    value = text_config(config).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def kind_of(config: Config) -> ModelKind | None:
    """Return whether the model is an encoder, a decoder or both, or None where the config does not tell."""
    model_type = str(config.get("model_type"))
    if config.get("is_encoder_decoder") is True or model_type in SEQ2SEQ_FAMILIES:
        return "encoder_decoder"
    if model_type in ENCODER_FAMILIES or model_type in OTHER_ENCODERS:
        return "decoder" if config.get("is_decoder") is True else "encoder"
    if model_type in DECODER_FAMILIES or config.get("is_decoder") is True:
        return "decoder"
    listed = config.get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return "decoder"
    return "encoder" if any(name.endswith("ForMaskedLM") for name in names) else None


def task_refusal(config: Config, task: str) -> tuple[str, str] | None:
    """Return why a model cannot do a task, and what to do instead; None if it can, or if the config does not tell."""
    model_type = str(config.get("model_type"))
    kind = kind_of(config)
    if model_type in _NOT_TEXT:
        return f"{model_type} is no text model", "it is supported by count-params only"
    if model_type in OF_CERTAIN_LENGTHS:
        return f"a {model_type} model cannot do {task}: {OF_CERTAIN_LENGTHS[model_type]}", "choose another family"
    refusal = task_info(task).refused.get(kind) if kind else None
    return (f"a {model_type} model cannot do {task}: {refusal.reason}", refusal.remedy) if refusal else None


def unknown_model_type(config: Config) -> tuple[str, str] | None:
    """Return what is wrong with `model_type`, and the nearest names; None if the installed transformers has it.

    Looks at the names of transformers' folders, which are its model types, without importing anything.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return "the config has no model_type", "this directory is not in transformers' format"
    if config.get("auto_map") or model_type in (*ENCODER_FAMILIES, *DECODER_FAMILIES, *SEQ2SEQ_FAMILIES):
        return None
    folder = _transformers_models()
    if folder is None or (folder / model_type.replace("-", "_")).is_dir():
        return None
    if f'"{model_type}"' in _text_of(folder / "auto"):  # one folder holds several types: gemma3_text, llama4_text
        return None
    known = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("_")]
    meant = did_you_mean(nearest(model_type, known, most=3))
    newer = "a newer transformers may know it: pip install -U transformers"
    return f"the installed transformers knows no model_type {model_type!r}", meant or newer


def _transformers_models() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    places = spec.submodule_search_locations if spec else None
    folder = Path(places[0]) / "models" if places else None
    return folder if folder is not None and folder.is_dir() else None


def _text_of(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
