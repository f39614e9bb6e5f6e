"""Trackers (TensorBoard, Weights & Biases, MLflow) through Accelerate; none unless `training.report_to` names them.

Project or experiment, and the run in it, are named after the run directory where the tracker's own variables of the
environment (WANDB_PROJECT, WANDB_NAME, MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, ...) say nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftcli.errors import Problem

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def tracker_problems(names: Sequence[str]) -> list[Problem]:
    """Return the trackers whose package is missing."""
    return [
        Problem(f"{name} is not installed", key="training.report_to", suggestion=f"python -m pip install {package}")
        for name, package in PACKAGES.items()
        if name in names and find_spec(package) is None
    ]


class Trackers:
    """The trackers of a run; they receive lines while `running`.

    Args:
        names: of `training.report_to`; none beside the main process.
        directory: the run's; local trackers write below `logs/`.
        config: the resolved recipe, stored with the run.
    """

    def __init__(self, names: Sequence[str], directory: Path, config: Mapping[str, Any]) -> None:
        self._names, self._directory, self._config = tuple(dict.fromkeys(names)), directory, config
        self._running: list[Any] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Connect inside; at the end, whatever ended it, files and connections are closed."""
        try:
            for name in self._names:
                self._running.append(_start(name, self._directory))
            for tracker in self._running:
                tracker.store_init_configuration(_flat(self._config))
            yield
        finally:
            while self._running:
                self._running.pop().finish()

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of metrics.jsonl."""
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        step = int(numbers.pop("step", 0))
        for tracker in self._running:
            tracker.log(numbers, step=step)


def _mlflow_experiment() -> str | None:
    """Return the name of the experiment whose number MLFLOW_EXPERIMENT_ID holds; None without one."""
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not number:
        return None
    mlflow = import_module("mlflow")
    return str(mlflow.get_experiment(number).name)


def _start(name: str, directory: Path) -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # the trackers write to Accelerate's log, which asks for the state of the processes
    logs = directory / "logs"
    if name == "tensorboard":
        logs.mkdir(parents=True, exist_ok=True)
        tracker: Any = tracking.TensorBoardTracker(directory.name, logging_dir=logs)
    elif name == "wandb":
        named = {} if os.environ.get("WANDB_NAME") else {"name": directory.name}
        tracker = tracking.WandBTracker(os.environ.get("WANDB_PROJECT") or directory.name, **named)
    else:  # Accelerate itself looks at MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID and MLFLOW_TAGS
        tracker = tracking.MLflowTracker(_mlflow_experiment() or directory.name)
    if hasattr(tracker, "start"):  # accelerate 1.x made connecting a step of its own
        tracker.start()
    return tracker


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a recipe as dotted keys with values that every tracker stores: numbers, words and truths."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, int | float | str | bool):
            flat[f"{prefix}{key}"] = value
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value)
    return flat
