"""What the config of a checkpoint says of its quantiser, and what that needs here; known before weights load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem
from peftcli.layers.quantised.quantiser_table import QUANTISERS, Quantiser

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from peftcli.recipe.schema import ModelSpec

_KEY = "quantization_config.quant_method"
_PLAIN = "name the unquantised model"
_BITS = ("bits", "nbits", "w_bit")
_TYPES = ("weights", "quant_type")
_SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert")
_HERE = f"{_PLAIN}; model.load_in_4bit: true quantises it while it loads"


def stored_settings(config: PretrainedConfig) -> dict[str, Any] | None:
    """Return the quantiser's settings that a checkpoint's config holds, or None if it is not quantised."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:  # a model of texts and images may have them in the text model's part
        stored = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if stored is None:
        return None
    return dict(stored) if isinstance(stored, Mapping) else dict(stored.to_dict())


def stored_method(config: PretrainedConfig) -> str | None:
    """Return the quantiser of a checkpoint, as its config names it; None if it is not quantised."""
    settings = stored_settings(config)
    if settings is None:
        return None
    method = settings.get("quant_method", "bitsandbytes")
    return str(getattr(method, "value", method))


def becomes_plain(method: str) -> bool:
    """Tell whether the weights of a checkpoint of this quantiser are turned into plain ones while they are read."""
    return method in QUANTISERS and QUANTISERS[method].held == "dequantised"


def stored_packed(config: PretrainedConfig) -> bool:
    """Tell whether a checkpoint's weights stay quantised once they are read."""
    method = stored_method(config)
    return method is not None and not becomes_plain(method)


def may_be_quantised(config: PretrainedConfig) -> bool:
    """Tell whether bits can be asked for while a checkpoint loads: one of another quantiser refuses that."""
    return stored_method(config) in (None, "bitsandbytes")


def stored_bits(config: PretrainedConfig) -> int | None:
    """Return the bits of a weight of a checkpoint that stays quantised, as its settings tell them.

    None where they do not, or where the checkpoint is not of that kind.
    """
    settings = stored_settings(config)
    if settings is None or not stored_packed(config):
        return None
    if stored_method(config) == "bitsandbytes":
        return 8 if settings.get("load_in_8bit") else 4
    named = [settings[key] for key in _BITS if isinstance(settings.get(key), int)]
    # quanto and torchao name a type: int4, float8, Int8DynamicActivationInt4WeightConfig
    types = str([settings.get(key) for key in _TYPES])
    typed = re.search(r"(\d+)Weight", types) or re.search(r"(?:int|float)(\d)", types)
    return int(named[0]) if named else int(typed[1]) if typed else None


def kept_plain(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the modules that a checkpoint's quantiser has left as they were, by their names or the ends of these."""
    settings = stored_settings(config) or {}
    return tuple(str(name) for key in _SKIPPED for name in settings.get(key) or ())


def read_dequantised(config: PretrainedConfig) -> None:
    """Have transformers turn each weight into a plain one while it reads it, where the quantiser is of that kind."""
    settings, method = stored_settings(config), stored_method(config)
    if settings is not None and method is not None and becomes_plain(method):
        config.quantization_config = {**settings, "dequantize": True}


def choose_layers(config: PretrainedConfig, device: str) -> None:
    """Have transformers make a checkpoint's packed layers of a kind on which adapters train on this kind of device."""
    settings, method = stored_settings(config), stored_method(config)
    backend = QUANTISERS[method].backends.get(device) if method in QUANTISERS else None
    if settings is not None and backend is not None:
        config.quantization_config = {**settings, "backend": backend}


def partial_blocks(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Return the context in which transformers reads such a checkpoint's blocks of scales as they were written."""
    if stored_method(config) != "fp8":
        return nullcontext()
    from peftcli.layers.quantised.scale_grids import partial_blocks_read

    return partial_blocks_read()


def stored_problems(config: PretrainedConfig, spec: ModelSpec, device: str, *, trains: bool = False) -> list[Problem]:
    """Return why a checkpoint that is stored quantised cannot be used here.

    Args:
        config: of the checkpoint.
        spec: may ask for a quantisation of its own.
        device: its kind, such as `cuda` or `cpu`.
        trains: whether an adapter is to be trained on it.
    """
    method = stored_method(config)
    if method is None:
        return []
    file = f"{config.name_or_path}/config.json"
    asked = [key for key in ("load_in_4bit", "load_in_8bit") if getattr(spec, key) and method != "bitsandbytes"]
    problems = [
        Problem(f"this checkpoint is quantised already, with {method}", key=f"model.{key}",
                suggestion="leave it out, or name the original model")
        for key in asked
    ]  # fmt: skip
    if method not in QUANTISERS:
        known = f"known are {', '.join(sorted(QUANTISERS))}"
        problems.append(Problem(f"{method!r} is no quantiser that is known here", file, key=_KEY, suggestion=known))
        return problems
    found = _why_not(QUANTISERS[method], spec, device, trains=trains)
    return [*problems, *(Problem(reason, file, key=_KEY, suggestion=remedy) for reason, remedy in found)]


def _why_not(row: Quantiser, spec: ModelSpec, device: str, *, trains: bool) -> list[tuple[str, str]]:
    """Return each reason against a quantiser here, with what to do."""
    stored = f"the base is stored quantised with {row.title}"
    if row.not_loaded is not None:
        return [(f"{stored}, and {row.not_loaded}", _HERE)]
    found = []
    if trains and row.not_trained is not None:
        found.append((f"{stored}, on which no adapter can be trained: {row.not_trained}", _HERE))
    lacking = [name for module, name in row.packages if not _installed(module)]
    if lacking:
        what = f"{', '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed"
        found.append((f"{stored}, and needs {what}", f"python -m pip install {' '.join(lacking)}, or {_PLAIN}"))
    if row.devices is not None and device not in row.devices:
        where = " and ".join(row.devices)
        found.append(
            (f"{stored}, whose layers compute on {where}, not on {device}", f"choose such a device, or {_HERE}")
        )
    if row.hub_code and not spec.trust_remote_code:
        remedy = f"model.trust_remote_code: true allows it; or {_PLAIN}"
        found.append((f"{stored}, whose layers run code that is fetched from the hub", remedy))
    return found


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def quantiser_title(method: str) -> str:
    """Return a quantiser's name as its authors write it."""
    return QUANTISERS[method].title if method in QUANTISERS else method
