"""What a run of preference tuning keeps of the model before its first step, in `reference/` of its directory.

    reference/   state.json, state.safetensors: the log-probabilities of the run's rows, and the parts' first values

With it a run goes on, and is evaluated, against the same reference, whatever became of the cache of prepared rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from peftcli.atomic import new_directory
from peftcli.errors import UserError
from peftcli.record.tensor_tree import load_tree, save_tree
from peftcli.write_errors import OTHER_RUN

NAME = "reference"
TRAIN = "train"


@dataclass(frozen=True)
class RunReference:
    """Values by set of rows: `train`, and `validation NAME`.

    Args:
        values: (rows, 2) float32 each: log-probabilities of the chosen and of the rejected answers.
        rows: the fingerprint of each set.
        parts: what the method's state held; empty where the base alone is the reference.
        live: the values that training moves, by name, of a run that computes its reference in every pass; empty where
            they are the base's own.
        base: the `BaseIdentity` of the base, as plain data; empty in the record of an earlier version.
    """

    values: Mapping[str, npt.NDArray[np.float32]]
    rows: Mapping[str, str | None]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    live: Mapping[str, Tensor] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)


def validation_key(name: str) -> str:
    """Return the key of a validation set."""
    return f"validation {name}".strip()


def write_run_reference(run: Path, found: RunReference) -> None:
    """Write `reference/` of a run; after a crash it is whole or absent."""
    with new_directory(run / NAME, instead=OTHER_RUN) as directory:
        tree = {"values": found.values, "rows": found.rows, "parts": found.parts, "live": found.live}
        tree["base"] = found.base
        save_tree(directory, {name: dict(kept) for name, kept in tree.items()})


def read_run_reference(run: Path) -> RunReference | None:
    """Return what `write_run_reference` wrote; None where there is nothing.

    Raises:
        UserError: it is damaged.
    """
    if not (run / NAME).is_dir():
        return None
    try:
        tree: Any = load_tree(run / NAME)
        return RunReference(tree["values"], tree["rows"], tree["parts"], tree.get("live", {}), tree.get("base", {}))
    except (UserError, KeyError, TypeError) as error:
        remedy = "copy it back, or train again with --overwrite"
        raise UserError(f"{run / NAME} is damaged: {error}", suggestion=remedy) from error
