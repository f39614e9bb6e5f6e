"""Trackers (TensorBoard, Weights & Biases, MLflow) through Accelerate; none unless `training.report_to` names them.

Project or experiment, and the run in it, are named after the run directory where the tracker's own variables of the
environment (WANDB_PROJECT, WANDB_NAME, MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, ...) say nothing else.

A resumed run goes on with the tracker's run: logs/trackers.json has its id. Steps that an interrupted run had shown
already, and that are taken again, are shown once: TensorBoard drops the old ones, the others do not get the new ones.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftcli.atomic import write_text
from peftcli.errors import Problem, UserError
from peftcli.shown_text import first_line
from peftcli.typed_record import read_object
from peftcli.write_errors import OTHER_RUN

IDS = Path("logs", "trackers.json")
"""Where a run directory keeps the ids of its trackers' runs."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def tracker_problems(names: Sequence[str]) -> list[Problem]:
    """Return the trackers whose package is missing."""
    return [
        Problem(f"{name} is not installed", key="training.report_to", suggestion=f"python -m pip install {package}")
        for name, package in PACKAGES.items()
        if name in names and find_spec(package) is None
    ]


@dataclass(frozen=True)
class Earlier:
    """What an interrupted run had shown.

    Args:
        step: of the checkpoint from which it goes on.
        lines: of metrics.jsonl, those after the checkpoint among them.
    """

    step: int
    lines: Sequence[Mapping[str, Any]]


class Trackers:
    """The trackers of a run; they receive lines while `running`.

    Args:
        names: of `training.report_to`; none beside the main process.
        directory: the run's; local trackers write below `logs/`.
        config: the resolved recipe, stored with the run.
        earlier: of a run that goes on; None for a new one.
        note: receives what is not continued, and which tracker failed: it gets nothing more, and the run goes on.
    """

    def __init__(
        self,
        names: Sequence[str],
        directory: Path,
        config: Mapping[str, Any],
        earlier: Earlier | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._names, self._directory, self._config = tuple(dict.fromkeys(names)), directory, config
        self._earlier = earlier
        again = [] if earlier is None else [line for line in earlier.lines if line.get("step", 0) > earlier.step]
        self._shown = Counter(map(_kind, again))
        self._running: dict[str, Any] = {}
        self._continued: set[str] = set()
        """Trackers whose run knows the steps that are taken again."""
        self._note = note

    @contextmanager
    def running(self) -> Iterator[None]:
        """Connect inside; at the end, whatever ended it, files and connections are closed.

        Raises:
            UserError: a tracker cannot be started.
        """
        try:
            ids = self._ids()
            for name in self._names:
                self._connect(name, ids.get(name))
            self._keep_ids()
            yield
        finally:
            self._continued.clear()
            while self._running:
                name, tracker = self._running.popitem()
                with self._unless_broken(name):
                    tracker.finish()

    @contextmanager
    def _unless_broken(self, name: str) -> Iterator[None]:
        """Let a tracker go that fails inside, and say so: a full disk or a lost connection there ends no training."""
        try:
            yield
        except Exception as error:
            self._running.pop(name, None)
            reason = first_line(error)
            self._note(f"{name} failed and receives nothing more of this run ({reason}); metrics.jsonl has all of it")

    def _connect(self, name: str, identity: str | None) -> None:
        """Start a tracker, or go on with its run; a run that goes on has its configuration already."""
        earlier = self._earlier
        try:
            tracker = _start(name, self._directory, identity, None if earlier is None else earlier.step + 1)
        except Exception as error:
            problem, remedy = f"{name} cannot be started: {error}", "mend that, or leave it out"
            raise UserError(Problem(problem, key="training.report_to", suggestion=remedy)) from error
        self._running[name] = tracker
        if earlier is None or name == "wandb" or (name == "mlflow" and identity is None):
            tracker.store_init_configuration(_flat(self._config))
        if earlier is not None and name != "tensorboard":
            if identity is None:
                self._note(f"{name} shows the rest of this run as a new one: the id of the first part was not kept")
            else:
                self._continued.add(name)

    def _ids(self) -> dict[str, str]:
        """Return the ids that the first part of the run kept, by tracker; none of a new run, or if they are lost."""
        file = self._directory / IDS
        if self._earlier is None or not file.is_file():
            return {}
        try:
            found = read_object(file)
        except UserError as error:
            self._note(str(error))
            return {}
        return {name: value for name, value in found.items() if isinstance(value, str)}

    def _keep_ids(self) -> None:
        found = {name: _identity(name, tracker) for name, tracker in self._running.items()}
        ids = {name: value for name, value in found.items() if value is not None}
        if ids:
            file = self._directory / IDS
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(ids, indent=2) + "\n", instead=OTHER_RUN)

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of metrics.jsonl."""
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        known = self._shown[_kind(line)] > 0
        self._shown[_kind(line)] -= known
        step = int(numbers.pop("step", 0))
        for name, tracker in list(self._running.items()):
            if not (known and name in self._continued):
                with self._unless_broken(name):
                    tracker.log(numbers, step=step)


def _kind(line: Mapping[str, Any]) -> tuple[int, bool]:
    """Return by what a line is known again: its step, and whether it is that of a training step."""
    return int(line.get("step", 0)), "loss" in line


def _identity(name: str, tracker: Any) -> str | None:
    """Return the id of the run that a tracker has begun; TensorBoard's is its folder."""
    if name == "wandb":
        found = getattr(tracker.run, "id", None)  # a run that is switched off may have none
    else:
        found = tracker.active_run.info.run_id if name == "mlflow" else None
    return None if found is None else str(found)


def _mlflow_experiment() -> str | None:
    """Return the name of the experiment whose number MLFLOW_EXPERIMENT_ID holds; None without one."""
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not number:
        return None
    mlflow = import_module("mlflow")
    return str(mlflow.get_experiment(number).name)


def _start(name: str, directory: Path, identity: str | None, next_step: int | None) -> Any:
    """Return a tracker that has begun a run, or goes on with one.

    Args:
        identity: of the run to go on with; None begins one.
        next_step: from which on steps are shown again; None for a new run.
    """
    from accelerate import PartialState, tracking

    PartialState()  # the trackers write to Accelerate's log, which asks for the state of the processes
    logs = directory / "logs"
    if name == "tensorboard":
        logs.mkdir(parents=True, exist_ok=True)
        options = {} if next_step is None else {"purge_step": next_step}
        tracker: Any = tracking.TensorBoardTracker(directory.name, logging_dir=logs, **options)
    elif name == "wandb":
        named = {} if os.environ.get("WANDB_NAME") else {"name": directory.name}
        named |= {} if identity is None else {"id": identity, "resume": "allow"}
        tracker = tracking.WandBTracker(os.environ.get("WANDB_PROJECT") or directory.name, **named)
    else:  # Accelerate itself looks at MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID and MLFLOW_TAGS
        tracker = tracking.MLflowTracker(_mlflow_experiment() or directory.name, run_id=identity)
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
