"""What was tried of each model type of transformers (tried_types.json, written by docs/try_types.py)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_table import TASKS

FILE = Path(__file__).with_name("tried_types.json")
SAME_HEAD: dict[TaskName, TaskName] = {
    task.info.name: next(other.info.name for other in TASKS.values() if other.info.auto_class == task.info.auto_class)
    for task in TASKS.values()
}
"""From each task to the first one with its head: what was tried of that holds for it."""
TASKS_TRIED = tuple(dict.fromkeys(SAME_HEAD.values()))
CELLS = ("attach", "gradient", "padding", "cache", "merge")
TRIED = "tried"
BARE = ("padding", "cache")
"""What is measured of the bare model, too."""
MORE = 10.0
"""How many times as far as the bare model's outputs a method's may change before that is the method's own fault."""
_NUMBER = re.compile(r"(?<=by )\d\.\de[-+]\d+")


@dataclass(frozen=True)
class TriedTypes:
    """What was found.

    Args:
        transformers, torch: their versions.
        date: of the trial.
        methods: that were tried.
        types: by model type and task the record of `trials.try_type`, in whose `methods` those are left out of which
            all was tried and holds.
        untried: by task the types that the trial has not come to.
    """

    transformers: str
    torch: str
    date: str
    methods: list[str]
    types: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    untried: dict[str, list[str]] = field(default_factory=dict)

    def text(self) -> str:
        """Return the file's contents: a line for each type and task."""
        lines = [
            f"  {json.dumps(f'{name} {task}')}: {json.dumps(record)}"
            for name, tasks in sorted(self.types.items())
            for task, record in sorted(tasks.items())
        ]
        head = {
            "transformers": self.transformers,
            "torch": self.torch,
            "date": self.date,
            "methods": self.methods,
            "untried": self.untried,
        }
        return json.dumps(head)[:-1] + ', "types": {\n' + ",\n".join(lines) + "\n}}\n"

    def record(self, model_type: str, task: TaskName) -> dict[str, Any] | None:
        """Return the record of a type and task, or None where it was not tried."""
        return self.types.get(model_type, {}).get(SAME_HEAD[task])

    def cells(self, model_type: str, task: TaskName, method: str) -> dict[str, str] | None:
        """Return the cells of a method, or None where it was not tried."""
        record = self.record(model_type, task)
        if record is None or method not in self.methods or record["model"] != TRIED:
            return None
        found: dict[str, str] = record["methods"].get(method, dict.fromkeys(CELLS, TRIED))
        return found


def read_tried() -> TriedTypes:
    """Return what the file holds."""
    held = json.loads(FILE.read_text(encoding="utf-8"))
    types: dict[str, dict[str, dict[str, Any]]] = {}
    for place, record in held["types"].items():
        name, _, task = place.partition(" ")
        types.setdefault(name, {})[task] = record
    return TriedTypes(held["transformers"], held["torch"], held["date"], held["methods"], types, held["untried"])


def faults(cells: dict[str, str], bare: dict[str, Any]) -> dict[str, str]:
    """Return the cells that are not `tried`, without those in which the bare model itself is no better.

    Args:
        cells: of one method.
        bare: the record of the type.
    """
    own = bare_effects(bare)
    return {
        name: text
        for name, text in cells.items()
        if text != TRIED and not (name in own and deviation(text) <= MORE * own[name])
    }


def bare_effects(record: dict[str, Any]) -> dict[str, float]:
    """Return how far padding and cache change the outputs of the bare model, without any method, where they do.

    The largest of what was found with the values that it was made with and, where a method was found wrong, with other
    values: small random weights may hide it.
    """
    made = {what: deviation(record.get(what, TRIED)) for what in BARE}
    most = {what: max(off, record.get("moved", {}).get(what, 0.0)) for what, off in made.items()}
    return {what: off for what, off in most.items() if off}


def deviation(text: str) -> float:
    """Return the difference that a cell tells: 0 of what holds, infinite of an error."""
    if text == TRIED:
        return 0.0
    told = _NUMBER.search(text)
    return float(told[0]) if told else float("inf")


def without_whole(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without the methods of which all was tried and holds."""
    kept = {name: cells for name, cells in record["methods"].items() if any(text != TRIED for text in cells.values())}
    return {**record, "methods": kept}
