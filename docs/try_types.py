"""Try every method on a tiny model of every type of transformers: `python docs/try_types.py [TYPE ...]`.

Writes peftcli/analysis/support/tried_types.json, which `peft methods --model` reads, and from which docs/models.md is
made (`python docs/generate.py`). It takes half an hour of one core; of types that are named only theirs is replaced.
"""

from __future__ import annotations

import argparse
import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from multiprocessing import get_context
from typing import Any

import torch
import transformers

from peftcli.analysis.support.tiny_types import model_types
from peftcli.analysis.support.trials import UNKNOWN, try_type
from peftcli.analysis.support.tried_types import FILE, TASKS_TRIED, TriedTypes, read_tried, without_whole
from peftcli.process_state import quiet_transformers
from peftcli.protocol.registry import registry


def main() -> None:
    """Try the types and write the file, a type at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types of transformers; all by default")
    parser.add_argument("--untried", action="store_true", help="only those that the file has nothing of")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    options = parser.parse_args()
    held = read_tried()
    if (options.types or options.untried) and held.transformers != transformers.__version__:
        parser.error(f"the file is of transformers {held.transformers}: try all types with {transformers.__version__}")
    found = held.types if options.types or options.untried else {}
    every = [(name, task) for task in TASKS_TRIED for name in model_types(task)]
    pairs = [
        (name, task)
        for name, task in every
        if (not options.types or name in options.types) and not (options.untried and task in found.get(name, {}))
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        waiting = [(pair, pool.submit(tried, *pair)) for pair in pairs]
        for (name, task), result in waiting:
            try:
                record = result.result()
            except BrokenProcessPool:
                record = {"model": f"{UNKNOWN}the process died", "methods": {}}
            found.setdefault(name, {})[task] = without_whole(record)
            print(task, name, record["model"], flush=True)
            date = datetime.now(UTC).date().isoformat()
            left: dict[str, list[str]] = {task: [] for task in TASKS_TRIED}
            for each, kind in every:
                if kind not in found.get(each, {}):
                    left[kind].append(each)
            so_far = TriedTypes(transformers.__version__, torch.__version__, date, registry.names(), found, left)
            FILE.write_text(so_far.text(), encoding="utf-8")


def tried(name: str, task: Any) -> dict[str, Any]:
    """Return the record of one type; in a process of its own."""
    torch.set_num_threads(1)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return json.loads(json.dumps(try_type(name, task, registry.names())))


if __name__ == "__main__":
    main()
