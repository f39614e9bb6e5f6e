"""Show that every method learns at its own default learning rate: the demo's task, three seeds, beside the head alone.

    python benchmarks/learns.py                           # the runs that learns.json lacks, half a minute or more each
    python benchmarks/learns.py --table                   # the table of README, and which claims fail
    python benchmarks/learns.py --results /tmp/tried.json --methods mam --rates 5e-4 1e-3 --seeds 0    # look for a rate

Each run is `peft train` in a process of its own, with one thread: configs/lora.yaml with `method: {name: NAME}`, so
that every hyper-parameter and the learning rate are the method's defaults (`compose` has none for its parts; it takes
those of configs/compose.yaml). Rows are cut to half the demo's tokens, so that these runs fit an hour of two cores; the
task is the harder for it. The head alone is a frozen body below the same task head, at each of HEAD_RATES; the best
counts. A seed also draws which fifth of the rows is held out, the same for every method.

The claims, over three seeds: no method's mean evaluation loss is above the head's by more than the spread, and those of
CLEAR are below it by more than the spread and by a tenth at the least. The spread is the larger of the two ranges
(highest minus lowest seed). CLEAR is LoRA and its kin (a low-rank change of projections), adapters, and hybrids.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "learns.json"
SEEDS = (0, 1, 2)
HEAD = "head_alone"
HEAD_RATES = (3e-2, 1e-1, 3e-1)
MAX_LENGTH = 32
"""Tokens of a row, half of the demo's: half the time for the same rows and steps."""
CLEAR = ("lora", "qlora", "adalora", "vera", "adapter", "parallel_adapter", "compacter", "mam", "unipelt", "compose")
CLEARLY = 0.9
"""A clearly lower loss is at most this share of the head's."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run: a method's name, its learning rate and a seed."""

    method: str
    rate: float
    seed: int

    @property
    def recipe(self) -> Record:
        """The demo's recipe with this method instead of its own."""
        recipe: Record = yaml.safe_load((ROOT / "configs" / "lora.yaml").read_text(encoding="utf-8"))
        recipe["method"] = {"name": self.method}
        if self.method == "compose":
            recipe["method"] = yaml.safe_load((ROOT / "configs" / "compose.yaml").read_text(encoding="utf-8"))["method"]
        recipe["data"]["max_length"] = MAX_LENGTH
        recipe["training"]["learning_rate"] = self.rate
        recipe["seed"] = self.seed
        del recipe["output_dir"]
        return recipe

    @property
    def version(self) -> str:
        """A digest of the recipe with the method's defaults filled in: a result counts while it is the same."""
        recipe = self.recipe
        if self.method != HEAD:
            from peftcli.protocol.registry import registry

            params = registry.info(self.method).params.model_validate(recipe["method"])
            recipe["method"] = params.model_dump(mode="json")
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def planned(
    methods: list[str] | None = None, rates: list[float] | None = None, seeds: tuple[int, ...] = SEEDS
) -> list[Case]:
    """Return every run, seed by seed, the head's first; `rates` instead of the methods' defaults."""
    from peftcli.protocol.registry import registry

    cases = []
    for name in methods or [HEAD, *registry.names()]:
        own = HEAD_RATES if name == HEAD else (registry.info(name).learning_rate,)
        cases += [Case(name, rate, seed) for rate in rates or own for seed in seeds]
    return sorted(cases, key=lambda case: seeds.index(case.seed))


def read(path: Path = RESULTS) -> list[Record]:
    """Return the runs of a file; none if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def write(path: Path, runs: list[Record]) -> None:
    """Write all runs, one on a line; complete or not at all."""
    order = {case: number for number, case in enumerate([HEAD, *(case.method for case in planned())])}
    runs = sorted(runs, key=lambda run: (order.get(run["method"], 0), run["learning_rate"], run["seed"]))
    lines = ",\n".join(json.dumps(run) for run in runs)
    whole = path.with_suffix(".part")
    whole.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")
    whole.replace(path)


def found(case: Case, runs: list[Record]) -> Record | None:
    """Return the result of a run, unless it is of another version."""
    key = (case.method, case.rate, case.seed)
    for run in runs:
        if (run["method"], run["learning_rate"], run["seed"]) == key and run["version"] == case.version:
            return run
    return None


def train(case: Case) -> Record:
    """Train once, in a process and a directory of its own, and return what came out.

    Raises:
        RuntimeError: the run failed; shows what it printed.
    """
    work = Path(tempfile.mkdtemp(prefix="learns-"))
    try:
        (work / "recipe.yaml").write_text(yaml.safe_dump(case.recipe), encoding="utf-8")
        command = [sys.executable, "-m", "peftcli", "train", "recipe.yaml", "-o", "run", "--json", "--quiet"]
        path = os.pathsep.join([str(ROOT), str(head_plugin(work)), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        return record(case, json.loads(done.stdout))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def record(case: Case, summary: Record) -> Record:
    """Return what is kept of a run."""
    return {
        "method": case.method,
        "learning_rate": case.rate,
        "seed": case.seed,
        "eval_loss": round(summary["eval"]["eval_loss"], 5),
        "eval_accuracy": round(summary["eval"]["eval_accuracy"], 5),
        "train_loss": round(summary["train_loss"], 5),
        "steps": summary["steps"],
        "trainable": summary["trainable"],
        "saved": summary["saved"],
        "total": summary["total"],
        "seconds": round(summary["train_runtime"], 1),
        "precision": summary["precision"],
        "machine": machine(),
        "versions": summary["versions"],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "version": case.version,
    }


def machine() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def head_plugin(work: Path) -> Path:
    """Install the head alone as a method from outside, as CONTRIBUTING.md shows: nothing is attached to the body."""
    package = work / "plugin"
    metadata = package / "head_alone-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: head-alone\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[peftcli.methods]\n{HEAD} = head_alone_method\n", encoding="utf-8")
    shutil.copy(ROOT / "benchmarks" / "head_alone_method.py", package)
    return package


def run(cases: list[Case], path: Path, processes: int) -> None:
    """Train what is missing, `processes` at a time, and write each result as it comes."""
    runs = read(path)
    missing = [case for case in cases if found(case, runs) is None]
    print(f"{len(cases) - len(missing)} runs are there, {len(missing)} to do", file=sys.stderr)
    with ThreadPoolExecutor(processes) as pool:
        for case, result in _as_they_come(pool, missing):
            key = (case.method, case.rate, case.seed)
            runs = [old for old in read(path) if (old["method"], old["learning_rate"], old["seed"]) != key]
            write(path, [*runs, result])
            shown = f"{case.method} {case.rate:g} seed {case.seed}: {result['eval_loss']:.4f}"
            print(f"{shown} {result['eval_accuracy']:.1%} {result['seconds']} s", file=sys.stderr, flush=True)


def _as_they_come(pool: ThreadPoolExecutor, cases: list[Case]) -> Iterator[tuple[Case, Record]]:
    """Yield results as they come; after a failure, start no more."""
    futures = {pool.submit(train, case): case for case in cases}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


@dataclass(frozen=True)
class Row:
    """A method at one learning rate, over its seeds."""

    method: str
    rate: float
    losses: tuple[float, ...]
    accuracy: float
    trainable: int
    saved: int
    total: int

    @property
    def mean(self) -> float:
        """The mean evaluation loss."""
        return statistics.fmean(self.losses)

    @property
    def range(self) -> float:
        """The highest seed's loss minus the lowest's."""
        return max(self.losses) - min(self.losses)

    @property
    def shown(self) -> tuple[str, str, str, str]:
        """Return rate, loss (mean, and the lowest and highest seed's), accuracy and numbers in the adapter as text."""
        mantissa, _, exponent = f"{self.rate:.1e}".partition("e")
        loss = f"{self.mean:.3f} ({min(self.losses):.3f} to {max(self.losses):.3f})"
        return f"{float(mantissa):g}e{int(exponent)}", loss, f"{self.accuracy:.1%}", f"{self.saved:,}"


def rows(runs: list[Record], cases: list[Case] | None = None) -> list[Row]:
    """Return a row for each method and rate whose planned seeds are all there, the head at its best rate only."""
    groups: dict[tuple[str, float], list[Record]] = {}
    missing = set()
    for case in planned() if cases is None else cases:
        result = found(case, runs)
        groups.setdefault((case.method, case.rate), []).extend([result] if result else [])
        if result is None:
            missing.add((case.method, case.rate))
    made = [_row(name, rate, group) for (name, rate), group in groups.items() if (name, rate) not in missing]
    heads = sorted((row for row in made if row.method == HEAD), key=lambda row: row.mean)
    return heads[:1] + [row for row in made if row.method != HEAD]


def _row(name: str, rate: float, group: list[Record]) -> Row:
    losses = tuple(run["eval_loss"] for run in group)
    accuracy = statistics.fmean(run["eval_accuracy"] for run in group)
    return Row(name, rate, losses, accuracy, group[0]["trainable"], group[0]["saved"], group[0]["total"])


def broken(made: list[Row]) -> list[str]:
    """Return which claims these rows do not bear out."""
    (head,) = [row for row in made if row.method == HEAD]
    said = []
    for row in made[1:]:
        spread = max(row.range, head.range)
        shown = f"{row.method} ends at {row.mean:.3f}, the head alone at {head.mean:.3f}, the spread is {spread:.3f}"
        if row.mean > head.mean + spread:
            said.append(f"{shown}: worse")
        if row.method in CLEAR and row.mean > min(head.mean - spread, CLEARLY * head.mean):
            said.append(f"{shown}: not clearly lower")
    return said


def table(made: list[Row]) -> list[str]:
    """Return the head and a line for each row, in README's words."""
    lines = [
        "| method | learning rate | eval loss, 3 seeds | accuracy | trainable | adapter |",
        "|---|---|---|---|---|---|",
    ]
    for row in made:
        rate, loss, accuracy, saved = row.shown
        lines.append(f"| {row.method} | {rate} | {loss} | {accuracy} | {row.trainable / row.total:.2%} | {saved} |")
    return lines


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--rates", nargs="+", type=float)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    cases = planned(options.methods, options.rates, tuple(options.seeds))
    if not options.table:
        run(cases, options.results, options.processes)
    made = rows(read(options.results), cases)
    print("\n".join(table(made)))
    if options.methods is None and options.rates is None:
        print("\n".join(broken(made)) or "every claim holds")


if __name__ == "__main__":
    main()
