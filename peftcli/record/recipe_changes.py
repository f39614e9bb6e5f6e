"""What differs between two recipes, so that one run is not taken for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import keys_in_order
from peftcli.recipe.schema import TrainingSpec

NOT_COMPARED = ("output_dir", "distributed")
"""Keys in which two recipes may differ and still be the same run: a directory may be moved, and how processes share the
work does not change what comes out."""

LENGTH = ("training.num_train_epochs", "training.max_steps")
"""Keys of how long a run is: it can go on with larger ones."""


SHARING = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps",
           "training.max_tokens_per_micro_batch", "distributed")  # fmt: skip
"""Keys, and a block, of how the rows of a step are shared: a run can go on with others if a step has as many rows."""


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two resolved recipes differ."""
    left, right = (_flat(in_order(each)) for each in (old, new))
    keys = [key for key in {**right, **left} if left.get(key) != right.get(key)]
    return [key for key in keys if key.split(".")[0] not in NOT_COMPARED]


def only_length(keys: Sequence[str]) -> bool:
    """Return whether two recipes that differ in these keys can be those of one run and a longer one."""
    return bool(keys) and set(keys) <= set(LENGTH)


def of_sharing(key: str) -> bool:
    """Return whether a key says how the rows of a step are shared among passes and processes, and nothing else."""
    return key in SHARING or key.split(".")[0] in SHARING


def in_order(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain data, or such data around it, to compare: mappings whose order counts are their pairs."""
    found: dict[str, Any] = _compared("", recipe)
    return found


def _compared(key: str, value: Any) -> Any:
    """Return a value as it is compared: a mapping whose order counts as its pairs, wherever it stands."""
    if isinstance(value, Mapping):
        ordered = _in_order(key, value)
        made = {name: _compared(name, inner) for name, inner in value.items()}
        return {n: list(v.items()) if n in ordered and isinstance(v, Mapping) else v for n, v in made.items()}
    return [_compared("", inner) for inner in value] if isinstance(value, list) else value


def _in_order(key: str, block: Mapping[str, Any]) -> set[str]:
    """Return the keys of a recipe's block that are mappings whose order counts: of its training, or of a method."""
    if key == "training":
        return keys_in_order(TrainingSpec)
    name = block.get("name")
    params = registry.params_model(name) if isinstance(name, str) else None
    return set() if params is None else keys_in_order(params)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        elif value not in (None, {}, []):  # a key that an older version lacked equals its null
            flat[f"{prefix}{key}"] = value
    return flat
