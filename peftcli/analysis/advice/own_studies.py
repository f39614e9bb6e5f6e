"""What the user's own comparisons and sweeps of the same model and task found: it wins over literature.

Looked for beside the recipe's output directory: `comparison.json` and `sweep.json` one folder below its parent, which
is where studies are written by default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftcli.recipe.schema import Recipe

_OF_METHOD = ("r", "lora_alpha", "target_modules")
"""Hyper-parameters that a recommendation names."""


@dataclass(frozen=True)
class OwnFinding:
    """What one study found.

    Args:
        file: its record.
        values: recipe key -> value.
        words: what was measured, for `scope`.
        limit: what it does not say.
        date: of the study, or "".
    """

    file: Path
    values: dict[str, Any]
    words: str
    limit: str
    date: str


@dataclass
class OwnStudies:
    """The findings that count, newest last, and remarks on records that could not be used."""

    findings: list[OwnFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def own_studies(recipe: Recipe) -> OwnStudies:
    """Return what studies of this model and task found."""
    found = OwnStudies()
    place = Path(recipe.output_dir or "runs/run").parent
    for file in sorted([*place.glob("*/comparison.json"), *place.glob("*/sweep.json")]):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            one = (
                _of_comparison(file, record, recipe)
                if file.name == "comparison.json"
                else _of_sweep(file, record, recipe)
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            found.notes.append(f"{file} cannot be read and is left out: {type(error).__name__}: {error}")
            continue
        if one is not None:
            found.findings.append(one)
    found.findings.sort(key=lambda one: one.date)
    return found


def _of_comparison(file: Path, record: Mapping[str, Any], recipe: Recipe) -> OwnFinding | None:
    if (record["model"], record["task"]) != (recipe.model.name_or_path, recipe.task):
        return None
    rows = {row["verdict"]: row for row in reversed(record["methods"]) if row.get("verdict")}
    best = rows.get("best")
    if best is None:
        return None
    values: dict[str, Any] = {"method.name": best["method"]}
    values |= {f"method.{key}": value for key, value in best["params"].items() if key in _OF_METHOD}
    if best.get("rate") is not None:
        values["training.learning_rate"] = float(best["rate"])
    tied = [row["label"] for row in record["methods"] if row.get("verdict") == "tied with the best"]
    beside = f"tied with it: {', '.join(tied)}" if tied else "nothing tied with it"
    words = (
        f"your comparison of {len(record['methods'])} methods on {record['data']}: {best['label']} was best, "
        f"{record['metric']} {best['score']:.4g} on {record['rows']:,} rows and {len(record['seeds'])} seeds; {beside}"
    )
    return OwnFinding(file, values, words, _limit(record, recipe), str(record.get("date", "")))


def _of_sweep(file: Path, record: Mapping[str, Any], recipe: Recipe) -> OwnFinding | None:
    best = record["best"]
    if best is None:
        return None
    written = file.parent / best["recipe"]
    if not written.is_file():
        return None
    of = yaml.safe_load(written.read_text(encoding="utf-8"))
    if (of["model"]["name_or_path"], of["task"]) != (recipe.model.name_or_path, recipe.task):
        return None
    values = {"method.name": of["method"]["name"], **best["values"]}
    keys = ", ".join(best["values"])
    words = f"your sweep of {keys}: best of {len(record['trials'])} trials, {record['metric']} {best['score']:.4g}"
    seeds = best.get("seeds") or []
    words += f" on {len(seeds)} fresh seeds" if seeds else ""
    return OwnFinding(file, values, words, "says nothing of other keys", str(record.get("date", "")))


def _limit(record: Mapping[str, Any], recipe: Recipe) -> str:
    limits = [f"methods that were not in it: {', '.join(sorted(row['label'] for row in record['methods']))} were"]
    steps, full = record.get("steps"), record.get("full_steps")
    if steps and full and steps < full:
        limits.append(f"shortened to {steps} of {full} steps")
    data = recipe.data.path if recipe.data is not None else None
    if data != record["data"]:
        limits.append(f"measured on {record['data']}")
    return "; ".join(limits)
