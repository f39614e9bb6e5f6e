"""The generation_config.json of a model that leaves: the base's, valid, and with the ends of turn that were learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.deliverables.carried_files import write_object
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.models.load.generation_settings import GENERATION_CONFIG, check_generation_config
from peftcli.process_state import quiet_transformers
from peftcli.tasks.decoding import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEPT = re.compile(r".*_token_ids?$|^(do_sample|num_beams|max_new_tokens|max_length)$")


def why_not_valid(settings: Mapping[str, Any]) -> str | None:
    """Return why transformers refuses to save generation settings, None if it takes them."""
    from transformers import GenerationConfig

    try:
        with quiet_transformers():
            GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        return str(error)
    return None


def repaired(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings that transformers saves, and the names of those that were left out.

    What is left out has no effect as it stands, such as a temperature without sampling, or cannot be read.
    """
    kept = dict(settings)
    for _ in range(len(kept)):
        why = why_not_valid(kept)
        if why is None:
            break
        named = [name for name in re.findall(r"`(\w+)`", why) if name in kept]
        blamed = [name for name in named if name not in ("do_sample", "num_beams")] or named
        if not blamed:
            break
        for name in blamed:
            kept.pop(name, None)
    if why_not_valid(kept) is not None:
        kept = {name: value for name, value in kept.items() if _KEPT.match(name)}
    if why_not_valid(kept) is not None:
        kept = {}
    return kept, [name for name in settings if name not in kept]


def generation_notes(leaving: LeavingModel) -> list[str]:
    """Return what the user should know of the base's generation settings before training.

    Raises:
        UserError: transformers cannot read them, so that the model would not load.
    """
    if not leaving.info.generates:
        return []
    if leaving.base is not None:
        check_generation_config(leaving.base)
    lost = repaired(leaving.settings_of_base(GENERATION_CONFIG))[1]
    return [_note(lost)] if lost else []


def _note(lost: list[str]) -> str:
    return (
        f"transformers refuses to save the base's {GENERATION_CONFIG} as it is: the written file leaves out "
        f"{', '.join(lost)}, which had no effect or could not be read"
    )


def write_generation_config(directory: Path, leaving: LeavingModel, model: PreTrainedModel) -> list[str]:
    """Write generation_config.json, of a model that generates; return notes.

    The base's own file stays byte for byte if nothing in it must change.

    Args:
        directory: where to.
        leaving: says what was learnt.
        model: the live model: its settings serve where the base has no file.
    """
    path = directory / GENERATION_CONFIG
    if not leaving.info.generates:
        path.unlink(missing_ok=True)
        return []
    own = dict(leaving.settings_of_base(GENERATION_CONFIG))
    settings, lost = repaired(own or _live_settings(model, leaving))
    known = token_ids(settings.get("eos_token_id"))
    stops = list(dict.fromkeys([*known, *leaving.texts.stop_token_ids]))
    notes = [_note(lost)] if own and lost else []
    if len(stops) > len(known):
        settings["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if own == settings and leaving.base is not None:
        path.write_bytes((leaving.base / GENERATION_CONFIG).read_bytes())
    else:
        write_object(path, settings)
    return notes


def make_savable(model: PreTrainedModel) -> None:
    """Replace a model's generation settings by valid ones if transformers would refuse to save them."""
    from transformers import GenerationConfig

    config = getattr(model, "generation_config", None)
    if config is not None and why_not_valid(config.to_diff_dict()) is not None:
        model.generation_config = GenerationConfig(**repaired(config.to_diff_dict())[0])


def _live_settings(model: PreTrainedModel, leaving: LeavingModel) -> dict[str, Any]:
    """Return the settings that transformers read off the base's config, without the padding token of training."""
    config = getattr(model, "generation_config", None)
    settings: dict[str, Any] = {} if config is None else config.to_diff_dict()
    base = leaving.settings_of_base("config.json")
    if leaving.base is not None and base.get("pad_token_id") is None:
        settings.pop("pad_token_id", None)
    return settings
