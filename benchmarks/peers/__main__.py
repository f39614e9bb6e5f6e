"""Measure this project beside its peers, each in an environment of its own: same checkpoint, rows, method and loss.

    python -m benchmarks.peers --setup ENVIRONMENTS                 # all of them; or name some: --setup DIR trl unsloth
    python -m benchmarks.peers --environments ENVIRONMENTS --model CHECKPOINT        # the core, float32
    python -m benchmarks.peers ... --dtype float32 bfloat16 --repeats 3 --minutes 40
    python -m benchmarks.peers ... --sides litgpt swift llamafactory --repeats 1
    python -m benchmarks.peers ... --sides adapters/houlsby adapters/mam             # the encoder
    python -m benchmarks.peers --table                              # only write RESULTS.md from peers.json

LoRA of rank 8 on the query and value projections, eight rows a step. Each run is a process of its own and the sides
alternate. Measured from outside, alike for all: the seconds of `--many` rows minus those of `--few`, so that start-up
cancels; the seconds of the whole process; the peak of the resident memory of all its processes. `--setup` ends with
one run of 8 rows of each side, which shows that it works and with which first loss; 1.31 is right for the checkpoint
and rows of RESULTS.md, and 1.324 where the newline behind the end of a turn is not learnt. A peer that cannot
run is a row with the reason. Records go to peers.json after each repeat; sides measured before under the same
conditions stay.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from itertools import product
from pathlib import Path

from benchmarks.common.record import read_record, show
from benchmarks.peers.comparison import Plan, Record, conditions, fresh_pages, measure, merged
from benchmarks.peers.environments import set_up
from benchmarks.peers.peer_report import BEGIN, END, line, page_part, table_of
from benchmarks.peers.peer_table import CORE, DTYPES, PEERS, SIDES, Side, peer, side
from benchmarks.peers.side_runs import ROOT, NotRun, Place, run_side

HERE = ROOT / "benchmarks"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path.home() / ".cache/peftcli-benchmarks"
    parser.add_argument(
        "--setup", nargs="+", metavar=("DIR", "NAME"), help="make environments in DIR and try each side"
    )
    parser.add_argument("--environments", type=Path, default=home / "peers", help="what --setup made")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct, as transformers saves it")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--sides", nargs="+", default=list(CORE), metavar="SIDE", help=", ".join(s.name for s in SIDES))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--few", type=int, default=8, help="rows of the short run")
    parser.add_argument("--many", type=int, default=32, help="rows of the long run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="no run is started that would end later")
    parser.add_argument("--borrow", action="store_true", help="--setup uses this environment's packages where they fit")
    parser.add_argument("--install-minutes", type=float, default=7.0, help="of each step of an installation")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--material", type=Path, default=home / "peers-material", help="rows and logs")
    parser.add_argument("--output", type=Path, default=HERE / "peers.json")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table of what was measured")
    given = parser.parse_args(arguments)
    if not given.table and given.model is None:
        parser.error("--model is needed")
    return given


def prepare(place: Place, names: list[str], given: argparse.Namespace) -> int:
    """Make environments, and run each side of them once in each dtype; return how many runs failed."""
    failed = 0
    for one in [peer(name) for name in names] or PEERS:
        began = time.monotonic()
        why = set_up(one, place, 60 * given.install_minutes, given.borrow)
        print(f"{one.name}: {why or 'there'} ({time.monotonic() - began:.0f} s)", flush=True)
        for tried, dtype in product([known for known in SIDES if known.peer == one.name], given.dtype):
            try:
                found = run_side(tried, place, 8, dtype)
                said = f"first loss {found['losses'][0]:.4f}, {found['seconds']:.0f} s"
            except NotRun as reason:
                said = str(reason)
                failed += 1
            print(f"  {tried.name} {dtype}: {said}", flush=True)
    return failed


def compare(given: argparse.Namespace, place: Place) -> None:
    """Measure, and write the record after each repeat of a side."""
    plan = Plan(given.few, given.many, given.repeats, given.minutes)
    shared: dict[bool, Record] = {}
    pages = fresh_pages()

    def done(measured: Side, dtype: str, record: Record) -> None:
        encoder = measured.work != "decoder"
        if encoder not in shared:
            shared[encoder] = conditions(place, plan, encoder)
        print(line(measured, record, shared[encoder]["tokens"]), flush=True)
        table = table_of(measured, dtype)
        after = merged(
            {**read_record(given.output), "fresh_pages": pages}, table, shared[encoder], measured.name, record
        )
        given.output.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")

    measure([side(name) for name in given.sides], given.dtype, place, plan, done)


def main() -> int:
    """Set up, or measure and write the table into RESULTS.md where the record is the committed one."""
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run in progress ends, too
    if not given.table:
        folder = Path(given.setup[0]) if given.setup else given.environments
        place = Place(folder.resolve(), given.material.resolve(), given.model.resolve(), given.data, given.threads)
        if given.setup:
            return int(prepare(place, given.setup[1:], given) > 0)
        compare(given, place)
    show(page_part(read_record(given.output)), given.output, BEGIN, END)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
