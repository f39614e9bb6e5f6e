"""A base's config.json before transformers reads it: what it may not ask for, and numbers that would never end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.models.load.model_files import ModelSource, hub_is_reachable
from peftcli.models.weights.weight_index import INDEX, SINGLE
from peftcli.typed_record import read_object

CONFIG = "config.json"
_COUNT = re.compile(r"layer|block|expert|depth")
_MOST = 10_000
"""Blocks or experts of a model at most: building one takes time for each."""
_LARGEST = 2**63
_CORRECT = "correct it, or copy the original file again"
_POSITIVE = (
    "num_attention_heads",
    "num_heads",
    "n_head",
    "n_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "hidden_size",
    "n_embd",
    "d_model",
    "d_kv",
    "vocab_size",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
)
"""What no model has none of: it would be divided by, or nothing would be there to train."""
_ATTENTION = ("attn_implementation", "_attn_implementation")
_WEIGHTS = "transformers_weights"


def config_file(source: ModelSource, revision: str | None) -> Path | None:
    """Return a base's config.json; the hub's cached copy for a hub id, None where there is none of its own (GGUF)."""
    if source.kind == "directory" and source.path is not None:
        return source.path / CONFIG
    if source.kind == "gguf":
        return None
    from transformers.utils import cached_file

    found = cached_file(
        source.name,
        CONFIG,
        revision=revision or "main",
        local_files_only=not hub_is_reachable(),
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found)


def checked_config(file: Path) -> dict[str, Any]:
    """Return what a config.json holds.

    Raises:
        UserError: it is no JSON object, asks for code of the hub or for other weight files, or has a number that no
            model has; names the file and each key.
    """
    settings = read_object(file, suggestion="copy or download the model again")
    problems = [
        Problem(f"{settings[key]!r:.80} is no {kind}", str(file), key=key, suggestion=_CORRECT)
        for key, wanted, kind in (("model_type", str, "text"), ("quantization_config", dict, "object"))
        if key in settings and not isinstance(settings[key], wanted) and (settings[key], kind) != (None, "object")
    ]
    languages = settings.get("languages")
    if isinstance(languages, list) and languages and settings.get("default_language") is None:  # X-MOD
        reason = "the model has parts for several languages, and this does not say which one to use"
        remedy = f"write one of them into it, such as {languages[0]!r:.40}"
        problems.append(Problem(reason, str(file), key="default_language", suggestion=remedy))
    problems += [Problem(wrong, str(file), key=key, suggestion=remedy) for key, wrong, remedy in _wrong(settings)]
    if problems:
        raise UserError(problems)
    return settings


def _wrong(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield key, what is wrong and the remedy of every value that is refused."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if key in _ATTENTION and isinstance(value, str) and "/" in value:
            yield (
                name,
                f"{value!r} is code of the hub, which transformers would fetch and run",
                "remove the key; model.attn_implementation chooses the attention code",
            )
        elif key == _WEIGHTS and value not in (None, SINGLE, INDEX):
            yield name, f"{value!r} is another weight file than {SINGLE}", f"rename the file, and remove {_WEIGHTS}"
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            yield name, f"{value:.1e} is larger than any number that a model has", _CORRECT
        elif isinstance(value, int) and value > _MOST and _COUNT.search(key):
            yield name, f"{value} is more than any model has (at most {_MOST})", _CORRECT
        elif type(value) is int and value < 1 and key in _POSITIVE:
            yield name, f"{value} is too small (at least 1)", _CORRECT
        elif isinstance(value, dict) and prefix.count(".") < 8:
            yield from _wrong(value, f"{name}.")
