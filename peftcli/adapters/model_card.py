"""Model cards: front matter for the hub, then what was trained and how to use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import yaml

from peftcli.adapters.format import AdapterMeta
from peftcli.locations import is_on_hub, public_name
from peftcli.recipe.method_params import MethodParams
from peftcli.tasks.task_table import TASKS


@dataclass(frozen=True)
class Use:
    """How a library loads the files that a card describes.

    Args:
        library: its name on the hub (`library_name`).
        code: lines of Python that load them.
        note: what a user of that library should know.
    """

    library: str
    code: tuple[str, ...]
    note: str | None = None


def front_matter(base: str, library: str, tags: Iterable[str], task: str) -> list[str]:
    """Return the lines that the hub reads.

    Args:
        base: name of the base model; left out where it is no hub id, since the hub takes no card that names a path.
        library: that loads the files (`library_name`).
        tags: for the hub; the task is appended.
        task: as in a recipe; tells the hub's pipeline.
    """
    front: dict[str, object] = {"base_model": base} if is_on_hub(base) else {}
    front |= {"library_name": library, "tags": [*tags, task]}
    known = TASKS.get(task)
    if known is not None and known.info.pipeline_tag:
        front["pipeline_tag"] = known.info.pipeline_tag
    return ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", ""]


def python_block(lines: Iterable[str]) -> list[str]:
    """Return lines of Python as a block of Markdown, with an empty line behind."""
    return ["```python", *lines, "```", ""]


def adapter_card(
    params: MethodParams, meta: AdapterMeta, *, use: Use | None, metrics: Mapping[str, str] | None = None
) -> str:
    """Return the README.md of an adapter.

    Args:
        params: the method's hyper-parameters.
        meta: the adapter's record.
        use: the library that reads the files beside it; None where only this project does.
        metrics: final evaluation numbers, as people read them.
    """
    base = str(meta.base.get("name") or "unknown")
    changed = params.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    lines = [
        *front_matter(base, use.library if use else "peftcli", ("peftcli", params.name), meta.task),
        f"# {params.name} adapter for {public_name(base)}",
        "",
        f"A `{params.name}` adapter for the task `{meta.task}`, trained with peftcli.",
        "",
        "## Use",
        "",
        "```bash",
        "peft predict RUN --input rows.jsonl   # RUN: the run directory that holds this adapter",
        "```",
        "",
    ]
    if use is not None:
        lines += python_block(use.code)
        lines += [use.note, ""] if use.note else []
    lines += ["## Hyper-parameters", "", "| name | value |", "|---|---|"]
    lines += [f"| {name} | `{value}` |" for name, value in changed.items()]
    if meta.labels and meta.labels.get("names"):
        lines += ["", "## Labels", "", ", ".join(f"`{name}`" for name in meta.labels["names"])]
    if metrics:
        lines += ["", "## Evaluation", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in metrics.items()]
    if meta.versions:
        lines += ["", "## Versions", "", ", ".join(f"{name} {value}" for name, value in meta.versions.items())]
    return "\n".join(lines) + "\n"
