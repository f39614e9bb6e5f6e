"""Rows of preference tuning to evaluate, with the log-probabilities of the model that a run began with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from peftcli.assembly.run_reference import RunReference, read_run_reference, validation_key
from peftcli.data.rows.referenced_rows import Reference, ReferencedRows
from peftcli.data.rows.row_fingerprint import row_fingerprint
from peftcli.data.rows.row_set import RowSet
from peftcli.errors import UserError

Values = Callable[[RowSet], Reference]
"""Computes the values of some rows."""


class RunStart:
    """The model before a run's first step.

    Args:
        run: the directory.
        opened: returns what computes the values of rows on that model, from what the run kept of it; loading it takes
            as long as loading the run did.
        as_trained: whether the base is held as in training, so that the run's own values are those of its rows.
    """

    def __init__(self, run: Path, opened: Callable[[RunReference], Values], *, as_trained: bool) -> None:
        self._run, self._opened, self._as_trained = run, opened, as_trained

    def values(self, sets: Mapping[str, RowSet]) -> dict[str, Reference]:
        """Return the values of each set's rows: those that the run kept, or computed now.

        Raises:
            UserError: the run's record is gone, or the base alone was that model and is another one now.
        """
        kept = read_run_reference(self._run)
        if kept is None:
            raise UserError(
                f"{self._run} has no reference/: the model before the first step, with which answers are compared",
                suggestion="copy it back, or train again",
            )
        found: dict[str, Reference] = {}
        compute: Values | None = None
        for name, rows in sets.items():
            key = validation_key(name)
            print_of_rows = row_fingerprint(rows)
            if self._as_trained and key in kept.values and print_of_rows == kept.rows[key]:
                found[name] = np.asarray(kept.values[key], dtype=np.float32)
            else:
                compute = compute or self._opened(kept)
                found[name] = compute(rows)
        return found


def compared(sets: Mapping[str, RowSet], start: RunStart | None, own: Values) -> dict[str, RowSet]:
    """Return the rows with their values.

    Args:
        start: None where the model itself is the one before the first step.
        own: of the model itself.
    """
    values = {name: own(rows) for name, rows in sets.items()} if start is None else start.values(sets)
    return {name: ReferencedRows(rows, values[name]) for name, rows in sets.items()}
