"""What differs between two recipes, so that one run is not taken for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_COMPARED = ("output_dir", "distributed")
"""Keys in which two recipes may differ and still be the same run: a directory may be moved, and how processes share the
work does not change what comes out."""

LENGTH = ("training.num_train_epochs", "training.max_steps")
"""Keys of how long a run is: it can go on with larger ones."""


SHARING = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps",
           "training.max_tokens_per_micro_batch", "distributed")  # fmt: skip
"""Keys, and a block, of how the rows of a step are shared: a run can go on with others if a step has as many rows."""

IN_ORDER = ("lr_groups", "rank_pattern", "alpha_pattern")
"""Keys of mappings from expressions to values whose order counts: the first one that matches a name decides."""


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two resolved recipes differ."""
    left, right = (_flat({key: _compared(key, value) for key, value in each.items()}) for each in (old, new))
    keys = [key for key in {**right, **left} if left.get(key) != right.get(key)]
    return [key for key in keys if key.split(".")[0] not in NOT_COMPARED]


def only_length(keys: Sequence[str]) -> bool:
    """Return whether two recipes that differ in these keys can be those of one run and a longer one."""
    return bool(keys) and set(keys) <= set(LENGTH)


def of_sharing(key: str) -> bool:
    """Return whether a key says how the rows of a step are shared among passes and processes, and nothing else."""
    return key in SHARING or key.split(".")[0] in SHARING


def _compared(key: str, value: Any) -> Any:
    """Return a value as it is compared: a mapping whose order counts as its pairs, wherever it stands."""
    if isinstance(value, Mapping):
        made = {name: _compared(name, inner) for name, inner in value.items()}
        return list(made.items()) if key in IN_ORDER else made
    return [_compared("", inner) for inner in value] if isinstance(value, list) else value


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        elif value not in (None, {}, []):  # a key that an older version lacked equals its null
            flat[f"{prefix}{key}"] = value
    return flat
