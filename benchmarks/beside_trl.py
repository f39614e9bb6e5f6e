"""Measure preference tuning against TRL's DPOTrainer: same checkpoint, adapter, rows, order, precision and optimizer.

    python benchmarks/beside_trl.py --trl-python ENV/bin/python     # at most 12 minutes on two cores
    python benchmarks/beside_trl.py --trl-python ENV/bin/python --steps 2 --repeats 1 --output /tmp/preference.json

TRL is in an environment of its own, whose torch and transformers are this one's. Both sides compute the reference's
log-probabilities before the first step. Each run is a process of its own and the sides alternate, as in
`side_by_side.py`, which says how speed and memory are measured. `whole` is all tokens over the time from the start of
the command to the end of the last step: imports, loading and the reference included. No run is started that would
pass the limit of `--minutes`. The record goes to benchmarks/preference.json, and its table to RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ours
import report
from cells import Cell
from common.record import between, commit
from initial import initial_values
from material import prepared_rows, random_checkpoint
from side_by_side import HERE, machine, run_side

BEGIN = "<!-- preference: written by beside_trl.py from preference.json -->"
END = "<!-- end of preference -->"
CELLS = (
    Cell("preference", rows="pairs", steps=5, batch_size=4),
    Cell("preference", rows="pairs", dtype="bfloat16", steps=5, batch_size=4),
    Cell("preference", rows="pairs", dtype="bfloat16", checkpointing=True, steps=5, batch_size=4),
)
"""In the order of their importance: when the time is short the last ones are repeated less."""
LIBRARIES = ("torch", "transformers", "peft", "trl")


def recipe(cell: Cell, checkpoint: Path, rows: Path, initial: Path) -> dict[str, Any]:
    """Return this project's recipe of a cell."""
    whole = ours.recipe(replace(cell, task="causal_lm"), str(checkpoint), str(rows), str(initial))
    return {**whole, "task": cell.task, "data": {**whole["data"], "format": "preference", "chat_template": "none"}}


def measure(
    cells: tuple[Cell, ...], given: argparse.Namespace, checkpoint: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the repeats of each cell, each a run of both sides, as many as the time allows."""
    ends = time.time() + 60 * given.minutes
    found: dict[str, list[dict[str, Any]]] = {cell.name: [] for cell in cells}
    took: dict[str, float] = {}
    for _ in range(given.repeats):
        for cell in cells:
            started = time.time()
            if started + took.get(cell.name, 0) > ends:
                print(f"{cell.name} is not repeated: the time is up", file=sys.stderr)
                continue
            found[cell.name].append(_both(cell, given, checkpoint))
            took[cell.name] = time.time() - started
            print(line(cell, found[cell.name]), flush=True)
    return found


def _both(cell: Cell, given: argparse.Namespace, checkpoint: Path | None) -> dict[str, Any]:
    model = checkpoint or random_checkpoint(cell.shape, given.material, given.data)
    rows = prepared_rows(cell, model, given.material, given.data)
    initial = initial_values(replace(cell, task="causal_lm"), model, given.material)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.json"
        file.write_text(json.dumps(recipe(cell, model, rows, initial)), encoding="utf-8")
        mine = run_side("ours.py", file)
    theirs = run_side("trl_side.py", cell.as_json(), model, rows, initial, python=given.trl_python)
    return {"ours": mine, "theirs": theirs}


def summarise(cell: Cell, repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a cell: what `side_by_side.py` measures, and the speed of the whole process."""
    sides = [[both[side] for both in repeats] for side in ("ours", "theirs")]
    whole = [[sum(run["step_tokens"]) / (run["step_ends"][-1] - run["started"]) for run in side] for side in sides]
    ratios = [own / other for own, other in zip(*whole, strict=True)]
    return {
        **report.summarise(cell, *sides),
        "whole_ours": statistics.median(whole[0]),
        "whole_theirs": statistics.median(whole[1]),
        "whole_ratio": statistics.median(ratios),
    }


COLUMNS = (
    "cell", "steps: tok/s ours / TRL", "ratio (lowest to highest)", "whole: tok/s ours / TRL", "ratio",
    "peak memory GiB ours / TRL", "ratio", "last loss ours / TRL", "largest difference: loss, gradient norm (relative)",
)  # fmt: skip


def line(cell: Cell, repeats: list[dict[str, Any]]) -> str:
    """Return one line of the table."""
    if not repeats:
        return f"| {cell.name} | not measured |" + " |" * (len(COLUMNS) - 2)
    found = summarise(cell, repeats)
    between = f"{found['ratio_low']:.2f} to {found['ratio_high']:.2f}"
    fields = [
        cell.name,
        f"{found['ours']:,.0f} / {found['theirs']:,.0f}",
        f"**{found['ratio']:.2f}** ({between}, {len(repeats)} repeat{'s' * (len(repeats) > 1)})",
        f"{found['whole_ours']:,.0f} / {found['whole_theirs']:,.0f}",
        f"**{found['whole_ratio']:.2f}**",
        f"{found['memory_ours'] / 2**30:.2f} / {found['memory_theirs'] / 2**30:.2f}",
        f"**{found['memory_ratio']:.2f}**",
        f"{found['losses_ours'][-1]:.4f} / {found['losses_theirs'][-1]:.4f}",
        f"{found['loss_difference']:.0e}, {found['norm_difference']:.0e}"
        + ("" if found["agree"] else " (the sides differ)"),
    ]
    return f"| {' | '.join(fields)} |"


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    cells = [Cell(**one) for one in record["cells"]]
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    pairs = f"{cells[0].batch_size} pairs a step, {cells[0].steps} steps"
    said = f"{record['machine']}; {record['versions']}; {record['model']}; {pairs}; measured {record['date']}."
    return "\n".join([said, "", *head, *(line(cell, record["runs"][cell.name]) for cell in cells)])


def page(text: str, record: dict[str, Any]) -> str:
    """Return RESULTS.md with the table between the marks written anew."""
    return between(text, BEGIN, END, table(record))


def versions(python: str) -> str:
    """Return the versions of TRL's environment."""
    asked = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {LIBRARIES}))"
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="the Python of an environment that has TRL")
    parser.add_argument("--checkpoint", type=Path, help="a model's directory; a random one of the 135M shape without")
    parser.add_argument("--steps", type=int, help="steps of a run, instead of each cell's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights: shows that it runs")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table of what was measured")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE / "preference.json")
    return parser.parse_args()


def main() -> None:
    """Measure, keep the record, and write the table into RESULTS.md where the record is the committed one."""
    given = options()
    if not given.table:
        given.material.mkdir(parents=True, exist_ok=True)
        shape = "tiny" if given.tiny else "135m"
        cells = tuple(replace(cell, shape=shape, steps=given.steps or cell.steps) for cell in CELLS)
        runs = measure(cells, given, given.checkpoint and given.checkpoint.resolve())
        record = {
            "machine": machine(), "date": str(datetime.date.today()), "commit": commit(),
            "versions": versions(given.trl_python), "model": given.checkpoint.name if given.checkpoint else shape,
            "cells": [vars(cell) for cell in cells], "runs": runs,
        }  # fmt: skip
        given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(given.output.read_text(encoding="utf-8"))
    print(table(record))
    if given.output.resolve().parent == HERE.resolve():
        results = HERE / "RESULTS.md"
        results.write_text(page(results.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
