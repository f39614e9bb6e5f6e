"""Plot how speed and memory follow sequence length, batch, rank, adapted modules and rows of data.

    python benchmarks/scaling.py               # half an hour on two cores; benchmarks/plots/scaling.{json,png}
    python benchmarks/scaling.py --axes rows   # one axis again; the others stay as they are in the JSON
    python benchmarks/scaling.py --plot        # only draw the JSON again
    python benchmarks/scaling.py --check       # only hold the JSON against the bounds; exit code 1 if one is passed
    python benchmarks/scaling.py --tiny --output /tmp/plots    # shows that it runs, measures nothing

LoRA in float32 on a random Llama of 30 million weights (`material.SHAPES["30m"]`, or --shape), each point a process of
its own of three steps, of which the first is left out; medians of three such runs. The baseline, HF peft + Trainer,
runs beside it along length and batch. Along the rows, start-up is the time from command to first step: the first time
(rows are tokenised and kept), the next times (they are mapped from the cache), and streaming. Bounds on quotients of
points are printed at the end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ours
from cells import Cell
from initial import initial_values
from material import SHAPES, random_checkpoint
from report import memory, speed
from side_by_side import HERE, machine, run_side

STEPS = 3
AXES = {
    "length": [128, 256, 512, 1024, 2048, 4096],
    "batch": [1, 2, 4, 8, 16, 32],
    "rank": [1, 4, 16, 64, 256],
    "modules": [1, 2, 4, 7],
    "rows": [10**3, 10**4, 10**5, 10**6],
}
TINY_AXES = {"length": [128, 256], "batch": [1, 4], "rank": [1, 8], "modules": [1, 7], "rows": [100, 1000]}
ROLES = ["attn.q", "attn.v", "attn.k", "attn.o", "ffn.gate", "ffn.up", "ffn.down"]
LABELS = {
    "length": "tokens in a row (batch 2)",
    "batch": "rows in a batch (128 tokens each)",
    "rank": "LoRA rank (batch 8 of 128 tokens)",
    "modules": "adapted projections in a block (rank 8)",
    "rows": "rows of data",
}
Point = dict[str, Any]
Place = tuple[int, str]
"""Value and side of a point of an axis."""


@dataclass(frozen=True)
class Bound:
    """A limit on a quotient of two points of one measurement, which the machine's speed moves little.

    Args:
        key: of the points.
        over, under: numerator and denominator.
        least, most: the limits on the quotient, one of them.
    """

    key: str
    axis: str
    over: Place
    under: Place
    least: float = 0.0
    most: float = float("inf")

    @property
    def says(self) -> str:
        """What is compared, in words."""
        (x, side), (other, beside) = self.over, self.under
        return f"{KEYS[self.key]} with {self.axis} {x:,} ({side}), beside {other:,} ({beside})"


KEYS = {"memory_bytes": "memory", "tokens_per_second": "speed", "first_step_seconds": "time to the first step"}
MEMORY, SPEED, START = KEYS
BOUNDS = (
    Bound(MEMORY, "rows", (10**6, "first"), (10**3, "first"), most=1.3),
    Bound(START, "rows", (10**6, "first"), (10**3, "first"), most=25.0),
    Bound(START, "rows", (10**6, "cached"), (10**3, "cached"), most=1.5),
    Bound(START, "rows", (10**6, "streaming"), (10**3, "streaming"), most=1.5),
    Bound(MEMORY, "length", (4096, "ours"), (4096, "baseline"), most=0.4),
    Bound(SPEED, "length", (4096, "ours"), (4096, "baseline"), least=1.3),
    Bound(SPEED, "length", (4096, "ours"), (128, "ours"), least=0.6),
    Bound(SPEED, "rank", (256, "ours"), (1, "ours"), least=0.7),
    Bound(MEMORY, "rank", (256, "ours"), (1, "ours"), most=1.3),
    Bound(MEMORY, "batch", (32, "ours"), (32, "baseline"), most=0.4),
)
"""The largest model is counted, not run: `python -m benchmarks.startup --check` holds 70 and 175 billion parameters."""


def held(points: list[Point]) -> Iterator[tuple[Bound, float]]:
    """Yield each bound whose points were measured, with the quotient."""
    found = {(point["axis"], point["x"], point["side"]): point for point in points}
    for bound in BOUNDS:
        pair = [found.get((bound.axis, *place)) for place in (bound.over, bound.under)]
        if pair[0] is not None and pair[1] is not None:
            yield bound, pair[0][bound.key] / pair[1][bound.key]


def passed(points: list[Point]) -> int:
    """Print each bound beside what was measured; return how many are passed."""
    count = 0
    for bound, quotient in held(points):
        limit = f"at least {bound.least:g}" if bound.least else f"at most {bound.most:g}"
        within = bound.least <= quotient <= bound.most
        print(f"{bound.says}: {quotient:.2f} ({limit}){'' if within else ': passed'}")
        count += not within
    return count


class Bench:
    """Runs single points.

    Args:
        shape: of the model.
        material: where checkpoint and initial values are kept.
        work: for rows and recipes; removed afterwards.
        repeats: runs of each point; medians count.
    """

    def __init__(self, shape: str, material: Path, data: Path, work: Path, repeats: int) -> None:
        self.cell = Cell(shape=shape, steps=STEPS)
        self.checkpoint = random_checkpoint(shape, material, data)
        self.initial = initial_values(self.cell, self.checkpoint, material)
        self.work, self.repeats = work, repeats

    def rows(self, length: int, count: int) -> Path:
        """Write rows of random tokens, all of one length; the second half of each is supervised."""
        file, draw = self.work / f"tokens-{length}-{count}.jsonl", random.Random(0)
        size = SHAPES[self.cell.shape]["vocab_size"]
        with file.open("w", encoding="utf-8") as out:
            for _ in range(count):
                ids = [draw.randrange(3, size) for _ in range(length)]
                masked = length // 2
                out.write(json.dumps({"input_ids": ids, "labels": [-100] * masked + ids[masked:]}) + "\n")
        return file

    def recipe(self, rows: Path, batch: int, **method: Any) -> dict[str, Any]:
        """Return the recipe of a point; a method that the initial values do not fit starts from its own."""
        cell = replace(self.cell, batch_size=batch)
        whole = ours.recipe(cell, str(self.checkpoint), str(rows), str(self.initial))
        whole["data"]["max_length"] = max(AXES["length"])
        if method:
            whole["method"] = {**ours.method_block(cell), **method}
        return whole

    def own(
        self, axis: str, x: int, recipe: dict[str, Any], side: str = "ours", caches: list[Path] | None = None
    ) -> Point:
        """Return one point of this project; each run in turn has one of the caches, the last one from then on."""
        file = self.work / "recipe.json"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        left = list(caches or [])
        return self._point(
            axis, x, side, lambda: run_side("ours.py", file, cache=left.pop(0) if len(left) > 1 else [*left, None][0])
        )

    def other(self, x: int, axis: str, rows: Path, batch: int) -> Point:
        """Return one point of the baseline."""
        cell = replace(self.cell, batch_size=batch).as_json()
        files = (self.checkpoint, rows, self.initial)
        return self._point(axis, x, "baseline", lambda: run_side("baseline.py", cell, *files))

    def _point(self, axis: str, x: int, side: str, run: Callable[[], dict[str, Any]]) -> Point:
        runs = [run() for _ in range(self.repeats)]
        speeds = [speed(one, 1) for one in runs]
        found = {
            "axis": axis, "x": x, "side": side,
            "repeats": len(runs), "lowest": min(speeds), "highest": max(speeds),
            "tokens_per_second": statistics.median(speeds),
            "memory_bytes": statistics.median(memory(one) for one in runs),
            "first_step_seconds": statistics.median(one["step_ends"][0] - one["started"] for one in runs),
        }  # fmt: skip
        rate, held = f"{found['tokens_per_second']:,.0f} tok/s", f"{found['memory_bytes'] / 2**30:.2f} GiB"
        print(f"{axis} {x:,} {side}: {rate}, {held}, first step {found['first_step_seconds']:.1f} s", flush=True)
        return found


def along(axis: str, values: list[int], bench: Bench) -> Iterator[Point]:
    """Yield the points of an axis."""
    if axis == "rows":
        for count in values:
            yield from of_rows(count, bench)
        return
    for x in values:
        length, batch = (x, 2) if axis == "length" else (128, x if axis == "batch" else 8)
        rows = bench.rows(length, batch * STEPS)
        method = {"rank": {"r": x}, "modules": {"target_modules": ROLES[:x]}}.get(axis, {})
        yield bench.own(axis, x, bench.recipe(rows, batch, **method))
        if axis in ("length", "batch"):
            yield bench.other(x, axis, rows, batch)


def of_rows(count: int, bench: Bench) -> Iterator[Point]:
    """Yield three starts on a file of `count` rows of text: with an empty cache, with a full one, and streaming."""
    file, caches = bench.work / "rows.jsonl", [bench.work / f"cache-{count}-{n}" for n in range(bench.repeats)]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            row = {"prompt": f"What is {number} plus {number % 97}?", "completion": f"It is {number + number % 97}."}
            out.write(json.dumps(row) + "\n")
    recipe = bench.recipe(file, 8)
    recipe["data"] = {"path": str(file), "format": "prompt_completion", "val_set_size": 0, "max_length": 128}
    recipe["training"]["train_sampling_strategy"] = "random"
    yield bench.own("rows", count, recipe, "first", caches)
    yield bench.own("rows", count, recipe, "cached", caches[-1:])
    recipe["data"]["streaming"] = True
    yield bench.own("rows", count, recipe, "streaming")


def days(points: list[Point]) -> str:
    """Return when the points were measured: the day, or days with their axes where they differ."""
    axes: dict[str, list[str]] = {}
    for point in points:
        of_day = axes.setdefault(point["measured"], [])
        of_day.extend([point["axis"]] if point["axis"] not in of_day else [])
    return "; ".join(f"{day} ({', '.join(found)})" for day, found in axes.items()) if len(axes) > 1 else "".join(axes)


def draw(stored: dict[str, Any], target: Path) -> None:
    """Draw every axis: speed (rows: start-up) above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = [axis for axis in AXES if any(point["axis"] == axis for point in stored["points"])]
    figure, places = pyplot.subplots(2, len(axes), figsize=(4.2 * len(axes), 7.2), squeeze=False)
    for column, axis in enumerate(axes):
        points = [point for point in stored["points"] if point["axis"] == axis]
        starts = ("first_step_seconds", "s to the first step", 1.0)
        _panel(places[0, column], axis, points, *(starts if axis == "rows" else ("tokens_per_second", "tokens/s", 1.0)))
        _panel(places[1, column], axis, points, "memory_bytes", "peak memory, GiB", 2.0**30)
    figure.suptitle(f"{stored['title']}; {days(stored['points'])}")
    figure.tight_layout()
    figure.savefig(target, dpi=100)


def _panel(place: Any, axis: str, points: list[Point], key: str, label: str, unit: float) -> None:
    """Draw one quantity of one axis, a line for each side."""
    for side in dict.fromkeys(point["side"] for point in points):
        line = sorted((point["x"], point[key] / unit) for point in points if point["side"] == side)
        name = {"baseline": "HF peft + Trainer", "first": "first start"}.get(side, side)
        place.plot(*zip(*line, strict=True), marker="o", label=name)
    values = sorted({point["x"] for point in points})
    if axis != "modules":
        place.set_xscale("log", base=2)
    place.set_xticks(values, [f"{x:,}" for x in values], fontsize=8)
    place.minorticks_off()
    place.set_ylim(0, 1.12 * max(point[key] / unit for point in points))
    place.set_xlabel(LABELS[axis])
    place.set_ylabel(label)
    place.grid(alpha=0.3)
    place.legend()


def main() -> None:
    """Measure the axes asked for, keep the others, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--shape", default="30m", choices=[name for name in SHAPES if "hidden_size" in SHAPES[name]])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="few points on a tiny model")
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="measure and draw nothing")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks")
    parser.add_argument("--output", type=Path, default=HERE / "plots")
    given = parser.parse_args()
    for folder in (given.output, given.material):
        folder.mkdir(parents=True, exist_ok=True)
    file = given.output / "scaling.json"
    stored = json.loads(file.read_text()) if file.exists() else {"points": []}
    if given.check:
        raise SystemExit(passed(stored["points"]) > 0)
    for axis in [] if given.plot else given.axes:
        with tempfile.TemporaryDirectory() as work:
            shape = "tiny" if given.tiny else given.shape
            bench = Bench(shape, given.material, given.data, Path(work), given.repeats)
            found = along(axis, (TINY_AXES if given.tiny else AXES)[axis], bench)
            new = [{**point, "measured": str(datetime.date.today())} for point in found]
        title = f"LoRA r 8 on q and v, float32, {shape} shape; {machine()}"
        stored = {"title": title, "points": [p for p in stored["points"] if p["axis"] != axis] + new}
        file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    draw(stored, given.output / "scaling.png")
    passed(stored["points"])


if __name__ == "__main__":
    main()
