"""Find the file, and where it can be the key, that keeps a local tokenizer from loading."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.models.load.config_errors import config_error, reason_of
from peftcli.models.load.model_files import ModelSource
from peftcli.typed_record import read_json, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_WHOLE = "tokenizer.json"
_AGAIN = "copy the original file again"


def tokenizer_error(source: ModelSource, error: Exception) -> UserError | None:
    """Return why a tokenizer does not load, with the file at fault; None where that cannot be told.

    Args:
        source: where its files are.
        error: what transformers raised.
    """
    if source.kind != "directory" or source.path is None or "trust_remote_code" in str(error):
        return None
    directory = source.path
    try:
        settings = {name: read_object(directory / name, suggestion=_AGAIN) for name in _there(directory)}
        if (directory / _WHOLE).is_file():
            read_json(directory / _WHOLE, suggestion=_AGAIN)
    except UserError as damaged:
        return damaged
    for name, values in settings.items():

        def load(other: dict[str, Any], name: str = name) -> None:
            _load_with(directory, name, other)

        found = config_error(str(directory / name), "the tokenizer cannot be loaded with it", values, load, error)
        if found is not None:
            return found
    if not (directory / _WHOLE).is_file():
        return None
    reason = f"the tokenizer cannot be loaded from it: {reason_of(error)}"
    return UserError(Problem(reason, str(directory / _WHOLE), suggestion=_AGAIN))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: ModelSource) -> None:
    """Refuse settings that load and fail when the first text is encoded.

    Raises:
        UserError: names the file and the key.
    """
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        file = f"{source.path or source.name}/{_OBJECTS[0]}"
        reason = f"{longest!r:.60} is no number"
        raise UserError(Problem(reason, file, key="model_max_length", suggestion=f"correct it, or {_AGAIN}"))


def _there(directory: Path) -> list[str]:
    return [name for name in _OBJECTS if (directory / name).is_file()]


def _load_with(directory: Path, name: str, values: dict[str, Any]) -> None:
    """Load the tokenizer of a directory with other values in one of its files."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as scratch:
        for file in directory.iterdir():
            if file.is_file() and file.name != name and file.suffix != ".safetensors":
                (Path(scratch) / file.name).symlink_to(file.resolve())
        (Path(scratch) / name).write_text(json.dumps(values), encoding="utf-8")
        AutoTokenizer.from_pretrained(scratch, local_files_only=True)
