"""Measure `peft predict` and `peft eval` beside HF peft: same checkpoint, adapter, rows of token ids and greedy tokens.

    python -m benchmarks.prediction --decoder CHECKPOINT                     # all works in float32
    python -m benchmarks.prediction --decoder CHECKPOINT --works texts --dtype bfloat16 --repeats 3 --minutes 15
    python -m benchmarks.prediction --decoder CHECKPOINT --rows 4 12 --new-tokens 8 --output /tmp/prediction.json
    python -m benchmarks.prediction --table                      # only write RESULTS.md from prediction.json

The encoder is the demo's; CHECKPOINT is SmolLM2-135M-Instruct as transformers saves it. The adapter is LoRA of rank 8,
trained for two steps and exported. Each run is a process of its own and the sides alternate; measured from outside:
the seconds of many rows minus those of few, so that start-up cancels, and the peak of the resident memory. The
baseline's batches hold as many rows as the Trainer takes by itself (8), in the order of the file. Records go to
prediction.json after each repeat.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.process_tree import measured
from benchmarks.common.record import commit, processor, read_record, show
from benchmarks.prediction.prediction_table import BEGIN, END, Record, line, page_part
from benchmarks.prediction.prediction_works import WORKS, Material, Side, Work, words

ROOT = Path(__file__).resolve().parents[2]


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [work.name for work in WORKS]
    parser.add_argument("--decoder", type=Path, help="SmolLM2-135M-Instruct, as transformers saves it")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/gsm8k_train_2000.jsonl")
    parser.add_argument("--works", nargs="+", default=names, choices=names)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs=2, type=int, metavar=("FEW", "MANY"), help="instead of each work's own")
    parser.add_argument("--new-tokens", type=int, default=160, help="of a text at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30.0, help="no run is started that would end later")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--material", type=Path, default=Path.home() / ".cache/peftcli-benchmarks/prediction")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/prediction.json")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table of what was measured")
    given = parser.parse_args(arguments)
    if not given.table and given.decoder is None:
        parser.error("--decoder is needed")
    return given


def run_side(work: Work, side: Side, material: Material, count: int, given: argparse.Namespace) -> Record:
    """Predict `count` rows once; return seconds, peak memory and what was found.

    Raises:
        SystemExit: the side failed; its log is named.
    """
    rows = material.rows(work, count)
    known = words(work, side, material, rows, given.dtype, given.new_tokens)
    log = material.folder / f"{work.name}-{side.name.replace(' ', '-')}-{count}.log"
    threads = str(given.threads)
    with tempfile.TemporaryDirectory(dir=material.folder, prefix="run-") as scratch:
        out = Path(scratch) / "out.jsonl"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "PEFTCLI_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        command = [part.format(**known, out=out) for part in side.command]
        used = measured(command, environment, Path(scratch), log)
        said = (out if out.exists() else log).read_text(encoding="utf-8", errors="replace")
    if used.code:
        raise SystemExit(f"{work.name}: {side.name} ended with {used.code}; see {log}")
    return {"seconds": used.seconds, "cpu_seconds": used.cpu_seconds, "peak_bytes": used.peak_bytes, **_found(said)}


def _found(said: str) -> Record:
    """Return predictions, written tokens and the loss from the objects of JSON that a side wrote, each on new lines."""
    lines, at = [], 0
    while (at := f"\n{said}".find("\n{", at)) >= 0:
        found, length = json.JSONDecoder().raw_decode(said[at:])
        lines.append(found)
        at += length
    predictions = [str(row["prediction"]) for row in lines if "prediction" in row]
    losses = [row["eval_loss"] for row in lines if "eval_loss" in row]
    written = sum(row["scores"].get("tokens", 0) for row in lines if "scores" in row)
    several: Record = {"predictions": predictions} if predictions else {}
    return {**several, **({"loss": losses[-1]} if losses else {}), "written": written}


def compare(given: argparse.Namespace) -> None:
    """Measure, and write the record after each repeat of a side."""
    given.material.mkdir(parents=True, exist_ok=True)
    material = Material(given.material.resolve(), given.decoder.resolve(), given.data)
    works = [work for work in WORKS if work.name in given.works]
    tables = {work.name: _about(work, material, given) for work in works}
    until, longest = time.monotonic() + 60 * given.minutes, 0.0
    for _ in range(given.repeats):
        for work in works:
            table = tables[work.name]
            for side in work.sides:
                began = time.monotonic()
                if began + longest > until:
                    print(f"{work.name}: {side.name} is not repeated: the time is up", file=sys.stderr)
                    continue
                _repeat(work, side, material, table, given)
                longest = max(longest, time.monotonic() - began)
                print(line(table, side.name), flush=True)
                record = read_record(given.output)
                record.setdefault("tables", {})[f"{work.name}/{given.dtype}"] = table
                given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _repeat(work: Work, side: Side, material: Material, table: Record, given: argparse.Namespace) -> None:
    few, many = (run_side(work, side, material, count, given) for count in _counts(work, given))
    record = table["sides"][side.name]
    record["found"] = {key: many[key] for key in ("predictions", "loss") if key in many}
    record["tokens"] = many["written"] - few["written"] if work.counts == "written" else table["read"]
    kept = ("seconds", "cpu_seconds", "peak_bytes")
    record["runs"].append({name: {key: run[key] for key in kept} for name, run in (("few", few), ("many", many))})


def _counts(work: Work, given: argparse.Namespace) -> tuple[int, int]:
    return tuple(given.rows) if given.rows else (work.few, work.many)


def _about(work: Work, material: Material, given: argparse.Namespace) -> dict[str, Any]:
    few, many = _counts(work, given)
    read = [_tokens(material.rows(work, count)) for count in (few, many)]
    conditions = {
        "machine": processor(), "threads": given.threads, "dtype": given.dtype, "few": few, "many": many,
        "model": material.checkpoint(work.model).name if work.model == "decoder" else "all-MiniLM-L6-v2",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")),
    }  # fmt: skip
    return {
        "says": work.says, "ours": work.sides[0].name, "conditions": conditions, "commit": commit(),
        "date": str(datetime.date.today()), "read": read[1] - read[0],
        "sides": {side.name: {"runs": [], "found": {}, "tokens": 0} for side in work.sides},
    }  # fmt: skip


def _tokens(rows: Path) -> int:
    return sum(len(json.loads(row)["input_ids"]) for row in rows.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Measure, and write the table into RESULTS.md where the record is the committed one."""
    given = options()
    if not given.table:
        compare(given)
    show(page_part(read_record(given.output)), given.output, BEGIN, END)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
