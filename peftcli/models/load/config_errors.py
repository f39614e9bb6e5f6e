"""Turn what transformers raises for a config that it cannot build into the file and the key that is to blame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.models.load.config_limits import CONFIG
from peftcli.process_state import quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Attempt = Callable[[dict[str, Any]], Any]
"""Reads or builds something from settings, or raises what is wrong with them."""
_SECONDS = 10.0
"""That the search for the key may take; a large model builds in seconds."""
_SHOWN = 3


def blamed_keys(settings: Mapping[str, Any], attempt: Attempt, error: BaseException) -> list[str]:
    """Return the keys without which an attempt that fails succeeds, those first that the error speaks of.

    Nothing is known of the settings or of the library: each key is left out once, so that its default holds.

    Args:
        settings: with which the attempt failed.
        attempt: may change what it is given.
        error: what it raised.
    """
    text = str(error)
    if _succeeds(attempt, settings):
        return []  # it was something else
    named = [key for key, value in settings.items() if key in text or (len(str(value)) > 2 and str(value) in text)]
    for group in (named, [key for key in settings if key not in named]):
        found = _needless(settings, group, attempt)
        if found:
            return found[:_SHOWN]
    return []


def _needless(settings: Mapping[str, Any], keys: Iterable[str], attempt: Attempt) -> list[str]:
    found: list[str] = []
    end = time.monotonic() + _SECONDS
    for key in keys:
        if len(found) == _SHOWN or time.monotonic() > end:
            break
        rest = {name: value for name, value in settings.items() if name != key}
        # a default may not fit the other sizes; 1 does
        others = [rest, {**rest, key: 1}] if type(settings[key]) is int else [rest]
        if any(_succeeds(attempt, other) for other in others):
            found.append(key)
    return found


def _succeeds(attempt: Attempt, settings: Mapping[str, Any]) -> bool:
    try:
        with quiet_transformers():
            attempt(deepcopy(dict(settings)))
    except Exception:  # whatever a library raises
        return False
    return True


def config_error(
    place: str, what: str, settings: Mapping[str, Any], attempt: Attempt, error: BaseException
) -> UserError | None:
    """Return an error that names the keys of a config which are to blame; None if no single key is.

    Args:
        place: the file, for the message.
        what: cannot be done, such as "a llama model cannot be built from it".
        settings, attempt, error: see `blamed_keys`.
    """
    keys = blamed_keys(settings, attempt, error)
    if not keys:
        return None
    shown = {key: _short(settings[key]) for key in keys}
    reason = f"{what}: {reason_of(error)}"
    others = f" (or {' or '.join(keys[1:])}, which it has to agree with)" if keys[1:] else ""
    remedy = f"correct {keys[0]} = {shown[keys[0]]}{others}, or copy the original file again"
    return UserError(Problem(reason, file=place, key=keys[0], suggestion=remedy))


def build_error(config: PretrainedConfig, attempt: Attempt, error: BaseException) -> UserError:
    """Return why no model can be built from a config, with its file and the keys that are to blame."""
    name = str(config.name_or_path)
    file = Path(name) / CONFIG
    place = str(file) if file.is_file() else name or f"the config of this {config.model_type} model"
    what = f"transformers cannot build a {config.model_type} model from it"
    settings = config.to_diff_dict()
    found = config_error(place, what, settings, attempt, error)
    return found or UserError(Problem(f"{what}: {reason_of(error)}", file=place, suggestion="take the original file"))


def reason_of(error: BaseException) -> str:
    """Return the first lines of an error's text, with its kind where the text says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3])[:400]
    return text if len(text.split()) > 3 else f"{type(error).__name__} {text}".strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
