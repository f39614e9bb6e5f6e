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

from pydantic_core import to_jsonable_python

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.schema import Recipe

_OF_METHOD = ("r", "lora_alpha", "target_modules")
"""Hyper-parameters that a recommendation names, whatever their values."""


@dataclass(frozen=True)
class OwnFinding:
    """What one study found.

    Args:
        file: its record.
        values: recipe key -> value.
        words: what was measured, for `scope`.
        limit: what it does not say.
        date: of the study, or "".
        held: keys of `values` that were the same in all trials: what the others were found with.
    """

    file: Path
    values: dict[str, Any]
    words: str
    limit: str
    date: str
    held: frozenset[str] = frozenset()


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
        except UserError as error:
            found.notes.append(f"{file} is left out: {error.problems[0].message}")
            continue
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            found.notes.append(f"{file} cannot be read and is left out: {type(error).__name__}: {error}")
            continue
        if isinstance(one, str):
            found.notes.append(one)
        elif one is not None:
            found.findings.append(one)
    found.findings.sort(key=lambda one: one.date)
    return found


def _of_comparison(file: Path, record: Mapping[str, Any], recipe: Recipe) -> OwnFinding | str | None:
    """Return the method that a comparison's own report chooses; a sentence where that is to train nothing."""
    if (record["model"], record["task"]) != (recipe.model.name_or_path, recipe.task):
        return None
    rows = {row["label"]: row for row in record["methods"] if row.get("verdict") in ("best", "tied with the best")}
    best = next((row for row in rows.values() if row["verdict"] == "best"), None)
    if best is None:
        return None
    chosen = rows.get(record.get("choice"), best)
    if registry.find(chosen["method"]) is None:
        if chosen.get("trainable") == 0:
            return f"{file} is not used: no method was shown to be better than the untrained model"
        return f"{file} is left out: there is no method {chosen['method']} here"
    values: dict[str, Any] = {"method.name": chosen["method"]}
    values |= {f"method.{key}": value for key, value in _settings(chosen["method"], chosen["params"]).items()}
    if chosen.get("rate") is not None:
        values["training.learning_rate"] = float(chosen["rate"])
    return OwnFinding(file, values, _words(record, chosen, best), _limit(record, recipe), str(record.get("date", "")))


def _settings(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters without which another method would be trained: those that are no defaults."""
    fields = registry.info(method).params.model_fields
    defaults = {key: to_jsonable_python(one.get_default(call_default_factory=True), serialize_unknown=True)
                for key, one in fields.items() if not one.is_required()}  # fmt: skip
    return {key: value for key, value in params.items()
            if key in _OF_METHOD or (key in fields and (key not in defaults or value != defaults[key]))}  # fmt: skip


def _words(record: Mapping[str, Any], chosen: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Return what a comparison measured, and why its report chooses this method."""
    tied = [row["label"] for row in record["methods"] if row.get("verdict") == "tied with the best"]
    on = f"{record['metric']} {best['score']:.4g} on {record['rows']:,} rows and {len(record['seeds'])} seeds"
    head = f"your comparison of {len(record['methods'])} methods on {record['data']}: {best['label']} was best, {on}"
    if not tied:
        return f"{head}; nothing tied with it"
    why = "" if chosen is best else f"; of these {chosen['label']} trains the fewest numbers"
    return f"{head}; tied with it: {', '.join(tied)}{why}"


def _of_sweep(file: Path, record: Mapping[str, Any], recipe: Recipe) -> OwnFinding | None:
    best = record["best"]
    if best is None:
        return None
    written = file.parent / best["recipe"]
    if not written.is_file():
        return None
    of = load_recipe(written, [], NAMES, need_data=False).recipe
    if (of.model.name_or_path, of.task) != (recipe.model.name_or_path, recipe.task):
        return None
    settings = _settings(of.method.name, of.method.model_dump(mode="json", exclude={"name"}))
    held = {f"method.{key}": value for key, value in settings.items() if not _is_swept(f"method.{key}", best["values"])}
    beside = f" (with {', '.join(map(_setting, held.items()))})" if held else ""
    words = f"your sweep of {', '.join(best['values'])}{beside}: best of {len(record['trials'])} trials"
    words += f", {record['metric']} {best['score']:.4g}"
    seeds = best.get("seeds") or []
    words += f" on {len(seeds)} fresh seeds" if seeds else ""
    held = {"method.name": of.method.name, **held}
    elsewhere = [] if _rows_of(of) == _rows_of(recipe) else [f"measured on {_rows_of(of)}"]
    limit = "; ".join(["says nothing about other keys", *elsewhere])
    return OwnFinding(file, {**held, **best["values"]}, words, limit, str(record.get("date", "")), frozenset(held))


def _setting(setting: tuple[str, Any]) -> str:
    """Return a key and its value as a recipe has them."""
    key, value = setting
    return f"{key}={json.dumps(value)}".replace('"', "")


def _is_swept(key: str, values: Mapping[str, Any]) -> bool:
    """Return whether a hyper-parameter, or a key below it, was searched."""
    return any(f"{one}.".startswith(f"{key}.") for one in values)


def _limit(record: Mapping[str, Any], recipe: Recipe) -> str:
    limits = [f"says nothing about methods other than {', '.join(sorted(row['label'] for row in record['methods']))}"]
    steps, full = record.get("steps"), record.get("full_steps")
    if steps and full and steps < full:
        limits.append(f"shortened to {steps} of {full} steps")
    if _rows_of(recipe) != record["data"]:
        limits.append(f"measured on {record['data']}")
    return "; ".join(limits)


def _rows_of(recipe: Recipe) -> str:
    """Return where a recipe's rows are from, as the records of studies have it."""
    return "" if recipe.data is None else recipe.data.named_sources
