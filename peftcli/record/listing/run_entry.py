"""One run of a list: what it is, how far it came, what it reached. What is broken about it is part of the answer."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from peftcli.errors import UserError
from peftcli.recipe.run_paths import IMPORTED, STORED
from peftcli.record.listing.failure import failure
from peftcli.record.run_lock import HOLDER_FILE
from peftcli.record.run_summary import Summary
from peftcli.record.shown_numbers import is_share
from peftcli.record.step_lines import StepLines
from peftcli.typed_record import read_object, read_record

State = Literal["finished", "imported", "running", "interrupted", "failed", "damaged"]

_LARGEST_RECIPE = 2**20  # bytes; recipes have a few thousand
_LATER = 10.0  # seconds by which a process may begin after the note of who holds a run, where clocks are coarse


@dataclass(frozen=True)
class RunEntry:
    """A run of a list; None is what is not known of it.

    Args:
        path: its directory.
        state: `finished`; `imported`, where `peft import` wrote it; `running`, where a process holds it; `failed`,
            where an error ended it; `interrupted`, where anything else did; `damaged`, where a file is missing or
            cannot be read.
        metric, score: the metric that chose its best adapter, or the plainest that it has, and its value.
        trained: parameters that are trained.
        size: bytes of all of its files.
        seconds: that its training took.
        step, steps: how far it came.
        changed: when its newest file was written, in seconds since 1970.
        reason: of a failure or a damage.
    """

    path: str
    state: State
    method: str | None = None
    task: str | None = None
    metric: str | None = None
    score: float | None = None
    trained: int | None = None
    size: int = 0
    seconds: float | None = None
    step: int | None = None
    steps: int | None = None
    changed: float = 0.0
    reason: str | None = None


def run_entry(path: Path) -> RunEntry:
    """Return what a run's directory says of it; no file in it is an error here."""
    size, changed = _files(path)
    about: dict[str, Any] = {"path": str(path), "size": size, "changed": changed}
    try:
        recipe = _recipe(path / STORED)
        about |= {"method": recipe["method"]["name"], "task": recipe["task"]}
        asked = recipe.get("training", {}).get("metric_for_best_model")
        wanted = asked if isinstance(asked, str) else None
        if (path / "summary.json").exists():
            return RunEntry(**about | _finished(path, wanted))
        return RunEntry(**about | _unfinished(path, recipe, wanted))
    except UserError as error:
        problem = error.problems[0]
        where = f"{Path(problem.file).name} " if problem.file else ""
        return RunEntry(**about | {"state": "damaged", "reason": f"{where}{problem.message}"})
    except OSError as error:
        return RunEntry(**about | {"state": "damaged", "reason": f"cannot be read: {error.strerror or error}"})


def _recipe(file: Path) -> dict[str, Any]:
    """Return a stored recipe as plain data: method, task and the rest are looked at, not checked.

    Raises:
        UserError: it is missing, or no recipe.
    """
    if not file.is_file():
        raise UserError(f"{STORED} is missing")
    if file.stat().st_size > _LARGEST_RECIPE:
        raise UserError(f"{STORED} is too large for a recipe")
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        found = yaml.load(file.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{STORED} cannot be read") from error
    method = found.get("method") if isinstance(found, dict) else None
    whole = isinstance(method, dict) and isinstance(method.get("name"), str) and isinstance(found.get("task"), str)
    if not whole or not isinstance(found.get("training", {}), dict):
        raise UserError(f"{STORED} is not that of a run")
    return dict(found)


def _finished(path: Path, wanted: str | None) -> dict[str, Any]:
    """Return what the summary says.

    Raises:
        UserError: it is damaged, or the weights that it tells of are gone.
    """
    file = path / "summary.json"
    if read_object(file).get("status") == IMPORTED:  # it was not trained here: no numbers but its weights
        if not any((path / "adapter").glob("*.safetensors")):
            raise UserError("adapter/ holds no weights")
        return {"state": "imported"}
    summary = read_record(Summary, file)
    if not any((path / summary.artifact).glob("*.safetensors")):
        raise UserError(f"{summary.artifact}/ holds no weights")
    name, score = _headline(summary.eval or {}, wanted)
    if score is None and summary.train_loss is not None:
        name, score = "train_loss", summary.train_loss
    return {
        "state": "finished",
        "method": summary.method,
        "task": summary.task,
        "metric": name,
        "score": score,
        "trained": summary.trainable,
        "seconds": summary.train_runtime,
        "step": summary.steps,
        "steps": summary.total_steps,
    }


def _unfinished(path: Path, recipe: Mapping[str, Any], wanted: str | None) -> dict[str, Any]:
    """Return how far a run came, and whether it goes on.

    Raises:
        UserError: its steps cannot be read.
    """
    lines = StepLines(path / "metrics.jsonl").lines()
    evaluated = [line for line in lines if any(key.startswith("eval_") for key in line)]
    best = next((line for line in reversed(evaluated) if line.get("best")), evaluated[-1] if evaluated else {})
    name, score = _headline(best, wanted)
    reason = failure(path)
    state = "interrupted" if reason is None else "failed"
    holder = _holder(path)
    if holder is not None:
        state, reason = "running", holder
    steps = recipe.get("training", {}).get("max_steps")
    return {
        "state": state,
        "metric": name,
        "score": score,
        "step": max((line["step"] for line in lines), default=0),
        "steps": steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None,
        "reason": reason,
    }


def _headline(metrics: Mapping[str, Any], wanted: str | None) -> tuple[str | None, float | None]:
    """Return the metric that stands for an evaluation: the one asked for, a share of right answers, or the loss."""
    names = [key for key, value in metrics.items() if key.startswith("eval_") and _is_number(value)]
    asked = [name for name in names if wanted and name.removeprefix("eval_") == wanted.removeprefix("eval_")]
    shares = [name for name in names if is_share(name) and "token_accuracy" not in name]
    losses = [name for name in names if name == "eval_loss"]
    plain = asked if asked and asked[0] != "eval_loss" else [*shares, *losses, *asked]
    return (plain[0], float(metrics[plain[0]])) if plain else (None, None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holder(path: Path) -> str | None:
    """Return who trains into the directory now; None if nobody does.

    A process that was killed leaves its note behind. Whether it lives can be asked on its own machine alone.
    """
    note = path / HOLDER_FILE
    try:
        found = re.fullmatch(r"process (\d{1,10}) on (.+)", note.read_text(encoding="utf-8").strip())
        since = note.stat().st_mtime
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    if found[2] != platform.node():
        return f"{found[0]}, which cannot be asked from here"
    return found[0] if _lives(int(found[1]), since) else None


def _lives(process: int, since: float) -> bool:
    """Tell whether a process is there, and not another one that was given its number later."""
    if os.name == "nt":  # there `kill` ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    try:
        return os.stat(f"/proc/{process}").st_mtime <= since + _LATER
    except OSError:
        return True


def _files(path: Path) -> tuple[int, float]:
    """Return the bytes of all files, and when the newest was written."""
    size, changed, folders = 0, 0.0, [str(path)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        continue
                    found = entry.stat(follow_symlinks=False)
                    size, changed = size + found.st_size, max(changed, found.st_mtime)
        except OSError:  # it goes away, or may not be read
            continue
    return size, changed
