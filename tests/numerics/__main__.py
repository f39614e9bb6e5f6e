"""Whether the working tree trains to the same bits: `python -m tests.numerics [--against COMMIT | --record]`.

Without an option the working tree is compared with the stored losses, where processor and torch are those that gave
them. `--against` trains another commit on this machine, too, and compares the adapters tensor by tensor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.numerics.machine import other_facts, this_machine
from tests.numerics.outcome import Comparison, Outcome, compare
from tests.numerics.runs import RunFailed, runs_of, train_all
from tests.numerics.stored import Stored, read_stored, write_stored
from tests.numerics.tiny import write_recipes

ROOT = Path(__file__).resolve().parent.parent.parent
Found = Mapping[str, Outcome | RunFailed]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code: 1 where anything differs or fails."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="peftcli-numerics-") as made:
        scratch = Path(made).resolve()
        if options.record:
            return record(scratch, options.jobs)
        if options.against:
            return against(options.against, scratch, options.jobs, options.only)
        return with_stored(scratch, options.jobs, options.only)


def record(scratch: Path, jobs: int) -> int:
    """Train the working tree and write the stored losses."""
    found = trained(ROOT, scratch, "now", jobs)
    failed = {name: outcome for name, outcome in found.items() if isinstance(outcome, RunFailed)}
    for name, failure in failed.items():
        print(f"{name}: {failure}")
    if failed:
        return 1
    write_stored(Stored(this_machine(), {name: o for name, o in found.items() if isinstance(o, Outcome)}))
    print(f"recorded {len(found)} runs")
    return 0


def with_stored(scratch: Path, jobs: int, only: Sequence[str] = ()) -> int:
    """Compare the working tree with the stored losses, if they were made on such a machine."""
    stored = read_stored()
    if others := other_facts(stored.machine, this_machine()):
        print("not compared: the stored losses are another machine's\n  " + "\n  ".join(others))
        return 0
    before = {name: outcome for name, outcome in stored.outcomes.items() if not only or name in only}
    return report(before, trained(ROOT, scratch, "now", jobs, only))


def against(commit: str, scratch: Path, jobs: int, only: Sequence[str] = ()) -> int:
    """Compare the working tree with a commit, both trained here."""
    with worktree(commit, scratch / "checkout") as checkout:
        before = trained(checkout, scratch, "before", jobs, only)
    return report(before, trained(ROOT, scratch, "now", jobs, only))


def trained(checkout: Path, scratch: Path, name: str, jobs: int, only: Sequence[str] = ()) -> Found:
    """Train a checkout's runs and say how long it took.

    Args:
        scratch: a directory that all checkouts share; the tiny models are built in it once.
        name: of the checkout's own directory in there.
        only: names of runs; empty for all.
    """
    shared, own = scratch / "tiny", scratch / name
    own.mkdir()
    if not shared.exists():
        shared.mkdir()
        write_recipes(shared)
    runs = runs_of(checkout, {recipe.stem: recipe for recipe in sorted(shared.glob("*.yaml"))})
    chosen = [run for run in runs if not only or run.name in only]
    if not chosen:
        raise SystemExit(f"no such run; there are: {', '.join(run.name for run in runs)}")
    start = time.monotonic()
    found = train_all(checkout, chosen, own, jobs)
    print(f"{name}: {len(found)} runs in {time.monotonic() - start:.0f} s", flush=True)
    return found


def report(before: Found, now: Found) -> int:
    """Print the table and what differs; return the exit code."""
    rows = [_compared(name, before.get(name), now.get(name)) for name in dict.fromkeys([*before, *now])]
    width = max(len(row.run) for row in rows)
    print(f"{'run':<{width}}  losses equal  adapter equal")
    for row in rows:
        print(f"{row.run:<{width}}  {_word(row.losses):<12}  {_word(row.adapter)}")
    for row in rows:
        for text in dict.fromkeys(text for text in (row.losses, row.adapter) if text is not None):
            print(f"{row.run}: {text}")
    different = sum(not row.equal for row in rows)
    print(f"{different} of {len(rows)} runs differ" if different else f"all {len(rows)} runs are equal bit for bit")
    return 1 if different else 0


@contextmanager
def worktree(commit: str, path: Path) -> Iterator[Path]:
    """Check a commit out beside the working tree, for as long as the context lasts."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
    try:
        yield path
    finally:
        subprocess.run([*git, "remove", "--force", str(path)], check=True)


def _compared(name: str, before: Outcome | RunFailed | None, now: Outcome | RunFailed | None) -> Comparison:
    if isinstance(before, Outcome) and isinstance(now, Outcome):
        return compare(name, before, now)
    problems = []
    for when, outcome in (("before", before), ("now", now)):
        if not isinstance(outcome, Outcome):
            problems.append(f"{when}: {'no such run' if outcome is None else outcome}")
    return Comparison(name, "\n".join(problems), "\n".join(problems))


def _word(difference: str | None) -> str:
    return "yes" if difference is None else "NO"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.numerics", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--against", metavar="COMMIT", help="train this commit too, and compare with it")
    what.add_argument("--record", action="store_true", help="write the stored losses")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (default: 2)")
    parser.add_argument("--only", action="append", default=[], metavar="RUN", help="compare this run alone; repeatable")
    options = parser.parse_args(arguments)
    if options.record and options.only:
        parser.error("--record writes all runs")
    return options


if __name__ == "__main__":
    sys.exit(main())
