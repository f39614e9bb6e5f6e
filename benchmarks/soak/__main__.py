"""Kill, damage, starve and confuse `peft` some 12,000 times, and count what was lost: nothing may be.

    python -m benchmarks.soak                      # all of it, at most 30 minutes on two cores
    python -m benchmarks.soak                      # after an interruption: goes on where it stopped
    python -m benchmarks.soak --share 0.05         # a twentieth of each kind
    python -m benchmarks.soak --kind flip          # one kind: kill, time, flip, cut, disk, recipe, data, adapter
    python -m benchmarks.soak --only kill/merge/3  # one case again, with what it printed
    python -m benchmarks.soak --sample             # what the tests run

Commands are killed (SIGKILL) at every file event of a training, an evaluation, a merge, an export and an import, then
at 200 random times; 500 bits are flipped, 200 files cut, the disk is full at 50 moments, and 10,000 recipes, data
files and adapter files are changed at random. A case ends well if the command gives what it gives undisturbed, or
refuses (exit code 2) and names the file; after a kill or a full disk the same command must then work. It ends badly
with a traceback, a signal, a minute of silence, another result in silence, half an output or a file left behind.

Each outcome is a line of a file (--journal); the table is made from it. All but the random times are the same for one
seed and commit. Each worker is one process that has imported everything and forks a child for each case.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.soak.outcomes import Journal, failed, table

ROOT = Path(__file__).resolve().parent.parent.parent
MEMORY = Path("/dev/shm")
"""Where files are kept if it is there: syncing a disk takes most of the time otherwise."""


PROGRESS = 30.0
"""Seconds between two lines that say how far it is."""


def main() -> int:
    """Run the campaign or one case; return 1 if anything ended badly."""
    options = _options()
    if options.part is not None:
        return _case(options) if options.only else _share(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and clean up
    if options.only:
        return max(_workers(1, None))
    journal = Journal(options.journal)
    journal.begin(campaign(options.seed, "sample" if options.sample else options.share))
    start = time.monotonic()
    codes = _workers(options.jobs, journal)
    outcomes = journal.outcomes()
    print(table(outcomes, options.seed))
    print(f"\n{_machine()}; {time.monotonic() - start:.0f} s with {options.jobs} workers, outcomes in {journal.path}")
    if any(codes):
        print("a worker failed: what is above is not all")
    return 1 if any(codes) or failed(outcomes.values()) else 0


def campaign(seed: int, share: float | str) -> dict[str, object]:
    """Return what a file of outcomes is of."""
    return {"commit": _commit(), "seed": seed, "share": share}


def _workers(number: int, journal: Journal | None) -> list[int]:
    """Run this command's workers, say how far they are, and return their exit codes."""
    home = MEMORY if os.access(MEMORY, os.W_OK) else None
    workers = []
    with tempfile.TemporaryDirectory(prefix="peftcli-soak-", dir=home) as scratch:
        try:
            for part in range(number):
                root = Path(scratch, str(part))
                root.mkdir()
                command = [sys.executable, "-m", "benchmarks.soak", *sys.argv[1:]]
                command += ["--part", str(part), "--scratch", str(root)]
                workers.append(subprocess.Popen(command, env=os.environ | _ENVIRONMENT))
            while any(worker.poll() is None for worker in workers):
                with suppress(subprocess.TimeoutExpired):
                    next(worker for worker in workers if worker.poll() is None).wait(PROGRESS)
                    continue
                if journal is not None:
                    ends = journal.outcomes().values()
                    lost = sum(not end.ended_well for end in ends)
                    print(f"{len(ends):,} cases, {lost:,} badly", file=sys.stderr, flush=True)
            return [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "100", "NO_COLOR": "1",
}  # fmt: skip


def _share(options: argparse.Namespace) -> int:
    """Do a worker's share of the campaign."""
    from benchmarks.soak.campaign import chosen, work

    cases = partial(chosen, share=None if options.sample else options.share, only=options.kind)
    work(options.scratch, Journal(options.journal), cases, options.seed, options.part, options.jobs)
    return 0


def _case(options: argparse.Namespace) -> int:
    """Do one case, and show it."""
    from benchmarks.soak.campaign import run_case
    from benchmarks.soak.workshop import Workshop

    shop = Workshop(options.scratch, options.seed)
    outcome = run_case(shop, options.only)
    print(*shop.log, sep="\n\n")
    kept = Path(tempfile.mkdtemp(prefix="peftcli-soak-case-"))
    shutil.copytree(shop.now, kept, dirs_exist_ok=True, symlinks=True)
    print(f"\n{'well' if outcome.ended_well else 'BADLY'}: {outcome.how}\nthe files are in {kept}")
    return 0 if outcome.ended_well else 1


def _commit() -> str:
    git = ("git", "-C", str(ROOT))
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "peftcli"], capture_output=True, text=True).stdout
    return f"{commit}, changed" if changed else commit or "unknown"


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, " + (
        f"{datetime.date.today()}, commit {_commit()}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="of the cases of each kind (default: 1)")
    parser.add_argument("--sample", action="store_true", help="a few cases of the kinds that take no time")
    parser.add_argument("--kind", default="", metavar="KIND", help="this kind of case alone")
    parser.add_argument("--only", metavar="CASE", help="do this case, and show what was printed")
    parser.add_argument("--seed", type=int, default=15, help="of all random choices (default: 15)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="workers (default: the cores)"
    )
    default = Path("soak.jsonl")
    parser.add_argument("--journal", type=Path, default=default, help=f"file of outcomes (default: {default})")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.journal = options.journal.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
