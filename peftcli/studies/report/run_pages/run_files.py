"""The files of a run directory that say what happened, read without loading a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftcli.data.store.data_report import DataReport
from peftcli.errors import UserError
from peftcli.recipe.run_paths import IMPORTED
from peftcli.recipe.stored_recipe import stored_recipe
from peftcli.record.listing.run_entry import RunEntry, run_entry
from peftcli.record.run_summary import Summary
from peftcli.record.step_lines import StepLines
from peftcli.typed_record import read_object, record_of

_REMEDY = "train again with `peft train RECIPE --overwrite`"
_SHOWN_SKIPPED = 50


@dataclass(frozen=True)
class RunFiles:
    """What a run left.

    Args:
        name: of its directory.
        recipe: the text of recipe.yaml; `settings` is what it says, {} if it is damaged.
        summary: None of a run that has not ended.
        entry: how it stands, as `peft runs` lists it.
        data: what became of the rows; None without a summary.
        lines: of metrics.jsonl; `samples`: of samples.jsonl.
        skipped: the first broken rows that were passed over.
    """

    name: str
    recipe: str
    settings: dict[str, Any]
    summary: Summary | None
    entry: RunEntry
    data: DataReport | None
    lines: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    skipped: list[dict[str, Any]]

    def setting(self, key: str) -> str:
        """Return a value of the recipe by its dotted path, as text; empty if there is none."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return "" if value is None or isinstance(value, dict) else str(value)


def read_run(run: Path) -> RunFiles:
    """Return what a run directory says.

    Raises:
        UserError: it is no run directory, its summary is damaged, or it was imported.
    """
    file = stored_recipe(run)
    text = file.read_text(encoding="utf-8", errors="replace")
    summary, data = _ended(run / "summary.json")
    return RunFiles(
        name=run.resolve().name,
        recipe=text,
        settings=_settings(text),
        summary=summary,
        entry=run_entry(run),
        data=data,
        lines=StepLines(run / "metrics.jsonl").lines(),
        samples=StepLines(run / "samples.jsonl").lines(),
        skipped=list(_objects(run / "skipped_rows.jsonl")),
    )


def _ended(file: Path) -> tuple[Summary | None, DataReport | None]:
    """Return summary.json, and the report on data in it; None of a run that has not ended.

    Raises:
        UserError: it is damaged, or that of an adapter which was trained elsewhere.
    """
    if not file.is_file():
        return None, None
    found = read_object(file, suggestion=_REMEDY)
    if found.get("status") == IMPORTED:
        remedy = f"peft inspect-adapter {file.parent} shows what its adapter changes"
        raise UserError(f"{file.parent} was made by `peft import`: there is no training to report", suggestion=remedy)
    summary = record_of(Summary, found, file, suggestion=_REMEDY)
    return summary, record_of(DataReport, summary.data, file, key="data", suggestion=_REMEDY)


def _settings(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the first objects of a file of JSON Lines; damaged lines are passed over."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for _, line in zip(range(_SHOWN_SKIPPED), lines, strict=False):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found
