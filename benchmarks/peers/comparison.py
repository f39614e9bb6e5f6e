"""From sides to records: who runs when, within how many minutes, and what one repeat of a side holds."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.record import commit, processor
from benchmarks.peers.peer_rows import rows_folder, token_count
from benchmarks.peers.peer_table import Side, peer, reference
from benchmarks.peers.side_runs import ROOT, NotRun, Place, run_side, versions

Record = dict[str, Any]


@dataclass
class Plan:
    """How much is measured.

    Args:
        few, many: rows of the two runs of a repeat; a step has eight.
        repeats: of each side.
        minutes: no run is started that would end later, as far as the same side's last repeat tells.
    """

    few: int
    many: int
    repeats: int
    minutes: float
    began: float = field(default_factory=time.monotonic)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def allows(self, side: Side, dtype: str) -> bool:
        """Return whether there is time for one more repeat; one that was never seen is taken for the longest so far."""
        expected = self.seconds.get((side.name, dtype), max(self.seconds.values(), default=0.0))
        return time.monotonic() + expected <= self.began + 60 * self.minutes


def measure(
    sides: Sequence[Side], dtypes: Sequence[str], place: Place, plan: Plan, done: Callable[[Side, str, Record], None]
) -> None:
    """Run sides in turn, as many repeats as the time allows; `done` is told a side's record after each repeat.

    This project's side of the same work runs first in each repeat, asked for or not: ratios are those of neighbours.
    A side that fails is not run again.
    """
    together = list(dict.fromkeys(one for side in sides for one in (reference(side), side)))
    records: dict[tuple[str, str], Record] = {}
    for _ in range(plan.repeats):
        for dtype in dtypes:
            ours: dict[str, Record] = {}
            for side in together:
                record = records.setdefault((side.name, dtype), _about(side))
                if "failed" in record:
                    continue
                if not plan.allows(side, dtype):
                    print(f"{side.name} {dtype} is not repeated: the time is up", file=sys.stderr)
                    continue
                started = time.monotonic()
                _repeat(side, dtype, place, plan, record, ours)
                plan.seconds[side.name, dtype] = time.monotonic() - started
                done(side, dtype, record)


def _repeat(side: Side, dtype: str, place: Place, plan: Plan, record: Record, ours: dict[str, Record]) -> None:
    try:
        run = {name: run_side(side, place, count, dtype) for name, count in (("few", plan.few), ("many", plan.many))}
        record["versions"] = versions(place, peer(side.peer))
    except NotRun as reason:
        record["failed"] = str(reason)
        return
    if side == reference(side):
        ours[side.work] = run
    record["runs"].append({**run, "ours": ours.get(side.work)})


def _about(side: Side) -> Record:
    return {"says": side.says, "date": str(datetime.date.today()), "commit": commit(), "runs": []}


def conditions(place: Place, plan: Plan, encoder: bool) -> Record:
    """Return what the records of one work must share to stand in one table."""
    folders = [rows_folder(place.material, place.data, count, encoder) for count in (plan.few, plan.many)]
    few, many = (token_count(folder, place.model, encoder) for folder in folders)
    return {
        "machine": processor(), "threads": place.threads, "model": "all-MiniLM-L6-v2" if encoder else place.model.name,
        "few": plan.few, "many": plan.many, "tokens": many - few,
    }  # fmt: skip


def fresh_pages() -> dict[str, float]:
    """Return GB a second of memory that a process takes anew, and of what it holds; another process measures it."""
    command = [sys.executable, "-m", "benchmarks.peers.fresh_pages"]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout))


def merged(stored: Record, work: str, shared: Record, side: str, record: Record) -> Record:
    """Return the stored record with one side measured anew; sides measured under other conditions are dropped.

    Args:
        work: the table's name, such as `decoder/float32`.
        shared: what `conditions` says.
    """
    tables = dict(stored.get("tables", {}))
    held = tables.get(work, {})
    sides = held.get("sides", {}) if held.get("conditions") == shared else {}
    tables[work] = {"conditions": shared, "sides": {**sides, side: record}}
    return {**stored, "tables": tables}
