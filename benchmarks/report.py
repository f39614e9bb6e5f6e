"""From the runs of both sides to one record of a cell, and from records to results.json and RESULTS.md. No torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cells import CPU_CELLS, CUDA_CELLS, Cell
from common.record import between, spread

Run = dict[str, Any]
TOLERANCES = {"float32": (1e-4, 0.01), "bfloat16": (2e-2, 0.1)}
"""Largest difference of a step's loss, and relative one of its gradient norm, between sides that agree."""
BEGIN = "<!-- cells: written by side_by_side.py from results.json -->"
END = "<!-- end of cells -->"
COLUMNS = (
    "cell", "tok/s ours / HF", "ratio (lowest to highest)", "supervised tok/s ours / HF", "peak memory GiB ours / HF",
    "ratio", "first step s ours / HF / its imports alone", "MFU", "last loss ours / HF",
    "largest difference: loss, gradient norm (relative)", "measured",
)  # fmt: skip


def speed(run: Run, warm_up: int) -> float:
    """Return non-padding tokens a second of the steps after the first `warm_up`."""
    seconds = run["step_ends"][-1] - run["step_ends"][warm_up - 1]
    return float(sum(run["step_tokens"][warm_up:]) / seconds)


def memory(run: Run) -> int:
    """Return the peak on the device, or of the process where it has none."""
    return int(run["peak_device_bytes"] or run["peak_rss_bytes"])


def agreement(cell: Cell, ours: Run, theirs: Run) -> dict[str, Any]:
    """Return how far losses and gradient norms of the two sides lie apart, and whether that is within rounding."""
    if not cell.same_order:
        return {"agree": None, "loss_difference": None, "norm_difference": None}
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    norms = list(zip(ours["norms"], theirs["norms"], strict=True))
    loss = max(abs(a - b) for a, b in pairs)
    norm = max(abs(a - b) / max(abs(b), 1e-12) for a, b in norms)
    limits = TOLERANCES["bfloat16" if "bfloat16" in (ours["compute"], theirs["compute"]) else "float32"]
    return {"agree": loss <= limits[0] and norm <= limits[1], "loss_difference": loss, "norm_difference": norm}


def summarise(cell: Cell, ours: list[Run], theirs: list[Run], compared: tuple[Run, Run] | None = None) -> Run:
    """Return the record of a cell: medians over repeats, and ratios of neighbouring runs.

    Args:
        ours, theirs: the repeats of each side, alternating.
        compared: a run of each side without the base's dropout; the losses of the first repeat where it has none.
    """
    rates = [[speed(run, cell.warm_up) for run in side] for side in (ours, theirs)]
    ratios = [own / other for own, other in zip(*rates, strict=True)]
    tokens = [statistics.median(side) for side in rates]
    held = [statistics.median(memory(run) for run in side) for side in (ours, theirs)]
    starts = [statistics.median(run["step_ends"][0] - run["started"] for run in side) for side in (ours, theirs)]
    pair = compared or (ours[0], theirs[0])
    return {
        "cell": cell.name, "repeats": len(ours), "steps": cell.steps, "batch_size": cell.batch_size,
        "ours": tokens[0], "theirs": tokens[1], "ratio": statistics.median(ratios),
        "ratio_low": min(ratios), "ratio_high": max(ratios),
        "supervised_ours": tokens[0] * ours[0]["supervised_share"],
        "supervised_theirs": tokens[1] * theirs[0]["supervised_share"],
        "memory_ours": held[0], "memory_theirs": held[1], "memory_ratio": held[0] / held[1],
        "first_step_ours": starts[0], "first_step_theirs": starts[1], "compute": ours[0]["compute"],
        "losses_ours": pair[0]["losses"], "losses_theirs": pair[1]["losses"],
        "norms_ours": pair[0]["norms"], "norms_theirs": pair[1]["norms"],
        "compared_without_dropout": compared is not None, **agreement(cell, *pair),
    }  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """Return what results.json holds, or an empty record."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"sections": []}


def merge(stored: dict[str, Any], machine: str, versions: str, record: Run) -> dict[str, Any]:
    """Return the stored results with one cell measured anew; other cells of that machine and versions stay."""
    sections = [{**section, "cells": dict(section["cells"])} for section in stored["sections"]]
    place = next((s for s in sections if (s["machine"], s["versions"]) == (machine, versions)), None)
    if place is None:
        place = {"machine": machine, "versions": versions, "device": record.get("device", "cpu"), "cells": {}}
        sections.insert(0, place)
    place["cells"][record["cell"]] = record
    return {**stored, "sections": sections}


def page(stored: dict[str, Any], text: str) -> str:
    """Return RESULTS.md with the part between the marks written anew; the rest was written by hand and stays.

    A cell that a section lacks is listed there as not measured, unless it was measured on that machine in another one.
    """
    parts = []
    for section in stored["sections"]:
        cells = CUDA_CELLS if section["device"] == "cuda" else CPU_CELLS
        same = [other["cells"] for other in stored["sections"] if other["machine"] == section["machine"]]
        listed = [cell for cell in cells if cell.name in section["cells"] or not any(cell.name in of for of in same)]
        parts += [f"## {section['machine']}; {section['versions']}", "", *table(listed, section["cells"]), ""]
    if not any(section["device"] == "cuda" for section in stored["sections"]):
        names = ", ".join(f"`{cell.name}`" for cell in CUDA_CELLS)
        command = "`python benchmarks/side_by_side.py --minutes 10`"
        parts += ["## CUDA", "", f"Not measured: no GPU. On one card {command} measures what fits of: {names}.", ""]
    return between(text, BEGIN, END, "\n".join(parts[:-1]))


def table(cells: Iterable[Cell], measured: dict[str, Run]) -> list[str]:
    """Return the table of a section: the listed cells in order, measured or not, and others that were measured."""
    names = list(dict.fromkeys([*(cell.name for cell in cells), *measured]))
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return head + [line(name, measured.get(name)) for name in names]


def line(name: str, record: Run | None) -> str:
    """Return one line of the table."""
    if record is None or "failed" in record:
        why = "not measured" if record is None else f"not measured: {record['failed']} ({record['date']})"
        return f"| {name} | {why} |" + " |" * (len(COLUMNS) - 2)
    fields = [
        name,
        f"{record['ours']:,.0f} / {record['theirs']:,.0f}",
        f"**{record['ratio']:.2f}**" + spread(record["ratio_low"], record["ratio_high"], record["repeats"]),
        f"{record['supervised_ours']:,.0f} / {record['supervised_theirs']:,.0f}",
        f"{record['memory_ours'] / 2**30:.2f} / {record['memory_theirs'] / 2**30:.2f}",
        f"**{record['memory_ratio']:.2f}**",
        f"{record['first_step_ours']:.1f} / {record['first_step_theirs']:.1f}" + _imports(record),
        f"{record['utilisation']:.0%} of {record['compute']}",
        f"{record['losses_ours'][-1]:.4f} / {record['losses_theirs'][-1]:.4f}",
        _differences(record),
        record["date"],
    ]
    return f"| {' | '.join(fields)} |"


def _imports(record: Run) -> str:
    return f" / {record['imports']:.1f}" if record.get("imports") else ""


def _differences(record: Run) -> str:
    """Return how far the sides lie apart; one that is too far is marked."""
    if record["agree"] is None:
        return record.get("not_compared", "rows in another order")
    found = f"{record['loss_difference']:.0e}, {record['norm_difference']:.0e}"
    found += " (without dropout)" if record["compared_without_dropout"] else ""
    return found if record["agree"] else f"**the sides differ**: {found}"
