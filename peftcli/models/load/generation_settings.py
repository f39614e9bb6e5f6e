"""A base's generation_config.json: read as transformers reads it, or refused with the key that is to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.models.load.config_errors import config_error, reason_of
from peftcli.process_state import quiet_transformers
from peftcli.typed_record import read_object

GENERATION_CONFIG = "generation_config.json"
_REMEDY = "correct it, or remove the file: transformers then takes its defaults"
_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")


def check_generation_config(directory: Path) -> None:
    """Read the generation settings of a model's directory, if it has some.

    Raises:
        UserError: they cannot be read; names the file and the key.
    """
    file = directory / GENERATION_CONFIG
    if not file.is_file():
        return
    settings = read_object(file, suggestion=_REMEDY)
    problems = [
        Problem(f"{settings[key]!r:.60} is no token id and no list of them", str(file), key=key, suggestion=_REMEDY)
        for key in _TOKENS
        if not _are_tokens(settings.get(key))
    ]
    if problems:
        raise UserError(problems)
    try:
        with quiet_transformers():
            _read(dict(settings))
    except Exception as error:  # whatever its checks raise for values of other kinds
        found = config_error(str(file), "transformers cannot read it", settings, _read, error)
        raise found or UserError(Problem(reason_of(error), str(file), suggestion=_REMEDY)) from error


def _read(settings: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    GenerationConfig.from_dict(settings).validate()


def _are_tokens(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    return all(type(number) is int and abs(number) < 2**31 for number in numbers)
