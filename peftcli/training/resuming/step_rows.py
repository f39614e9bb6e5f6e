"""The rows of a step must stay what they were when a run goes on, on whatever number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import TrainingSpec
from peftcli.record.run_inputs import RunInputs
from peftcli.shown_text import all_of


def check_step_rows(inputs: Mapping[str, Any] | None, spec: TrainingSpec, processes: int) -> None:
    """Look whether a step has as many rows as before: device batch x accumulation x processes.

    Args:
        inputs: what the run recorded (`RunInputs.as_dict`).

    Raises:
        UserError: it has not; names what to set so that it has.
    """
    rows = RunInputs.from_dict(inputs).step_rows
    size, accumulated = spec.per_device_train_batch_size, spec.gradient_accumulation_steps
    if rows is None or rows == size * accumulated * processes:
        return
    now = [("per_device_train_batch_size", size), ("gradient_accumulation_steps", accumulated)]
    remedy = " ".join(f"training.{key}={n}" for key, n in _shared_among(rows, processes, size) if (key, n) not in now)
    if not remedy:
        fitting = [str(number) for number in range(1, rows + 1) if rows % number == 0]
        remedy = (
            f"{rows} rows cannot be shared evenly among {processes} processes: --num-processes {all_of(fitting, 'or')}"
        )
    raise UserError(
        Problem(
            f"a step of this run has {rows} rows; here it would have {size * accumulated * processes} "
            f"(per_device_train_batch_size {size} x gradient_accumulation_steps {accumulated} x {processes} "
            f"process{'es' if processes > 1 else ''})",
            key="training.gradient_accumulation_steps",
            suggestion=f"add {remedy}" if remedy.startswith("training.") else remedy,
        )
    )


def _shared_among(rows: int, processes: int, size: int) -> list[tuple[str, int]]:
    """Return the keys to set, with their values: the largest device batch up to `size`; empty where nothing divides."""
    own, left = divmod(rows, processes)
    if left or not own:
        return []
    batch = max(number for number in range(1, min(size, own) + 1) if own % number == 0)
    return [("per_device_train_batch_size", batch), ("gradient_accumulation_steps", own // batch)]
