"""The tables of docs/models.md on what was tried of every model type of transformers (docs/try_types.py)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from peftcli.analysis.support.tried_types import TASKS_TRIED, TRIED, TriedTypes, bare_effects, faults, read_tried
from peftcli.recipe.schema import TaskName

COLUMNS = ["type", "read by", "in every block", "`all-linear`: share of the blocks' weights", "methods"]


def summary(tried: TriedTypes) -> str:
    """Return in a sentence or two what was tried, and how much of it holds."""
    lines = [
        f"Tried on {tried.date} with transformers {tried.transformers} and torch {tried.torch}, on random weights "
        f"and a CPU, with {len(tried.methods)} methods."
    ]
    for task in TASKS_TRIED:
        records = [tasks[task] for tasks in tried.types.values() if task in tasks]
        built = [record for record in records if record["model"] == TRIED]
        refused = sum(record["model"].startswith("refused") for record in records)
        right = sum(not any(_wrong(record).values()) for record in built)
        lines.append(
            f"- `{task}`: of {len(records)} types {refused} are refused for the task and {len(built)} were tried; "
            f"on {right} of them everything that is not refused with its reason holds"
            f"{f'; {waiting} types wait for their trial' if (waiting := len(tried.untried[task])) else ''}."
        )
    return "\n".join(lines)


def rows_of(task: TaskName) -> list[list[str]]:
    """Return a row for each type that was tried for a task."""
    tried = read_tried()
    found = []
    for name, tasks in tried.types.items():
        record = tasks.get(task)
        if record is not None and record["model"] == TRIED:
            found.append([f"`{name}`", record["found"], _reach(record), _linears(record), _methods(tried, record)])
    return found


def left_out(task: TaskName) -> str:
    """Return the types that were not tried, by reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    tried = read_tried()
    for name, tasks in tried.types.items():
        said = tasks.get(task, {}).get("model", TRIED)
        if said != TRIED:
            reasons[said.replace(f"a {name} model", "such a model").replace(f"tiny {name}", "tiny model")].append(name)
    for name in tried.untried[task]:
        reasons["waits for its trial"].append(name)
    return "\n".join(
        f"- {', '.join(f'`{name}`' for name in names)}: {_plain(said)}" for said, names in sorted(reasons.items())
    )


def _reach(record: dict[str, Any]) -> str:
    """Return which roles and branches are not in every block."""
    counts = {**record["roles"], **record["branches"]}
    partial = {name: count for name, count in counts.items() if len(set(count.split("/"))) > 1}
    missing = [name for name in ("attn", "ffn") if name not in record["branches"]]
    parts = [f"{name} in {count}" for name, count in partial.items()] + [f"no branch {name}" for name in missing]
    return ", ".join(parts) or "all"


def _linears(record: dict[str, Any]) -> str:
    found = record["all_linear"]
    return _plain(found) if isinstance(found, str) else f"{found['share']:.0%} ({found['modules']} modules)"


def _wrong(record: dict[str, Any]) -> dict[str, list[str]]:
    """Return by method what is wrong or unknown of it."""
    return {
        name: [what for what, text in faults(cells, record).items() if not text.startswith("refused")]
        for name, cells in record["methods"].items()
    }


def _methods(tried: TriedTypes, record: dict[str, Any]) -> str:
    cells = record["methods"]
    refused = [name for name in cells if any(text.startswith("refused") for text in cells[name].values())]
    wrong = {name: what for name, what in _wrong(record).items() if what}
    right = len(tried.methods) - len({*refused, *wrong})
    parts = ["all" if right == len(tried.methods) else f"{right}"]
    parts += [f"refused: {', '.join(refused)}"] if refused else []
    shown = [f"{name} ({' '.join(what)})" for name, what in wrong.items()]
    parts += [f"**wrong**: {', '.join(shown)}"] if wrong else []
    bare = [f"{what} ({off:.0e})" for what, off in bare_effects(record).items()]
    parts += [f"the bare model itself changes with {' and '.join(bare)}"] if bare else []
    parts += [f"the bare model's tokens do not reach each other: {record['apart']}"] if "apart" in record else []
    return "; ".join(parts)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;").replace("*", r"\*").replace("`", "'")
