"""Try every method on a tiny model of every type of transformers: `python docs/try_types.py [TYPE ...]`.

Writes peftcli/analysis/support/tried_types.json, which `peft methods --model` reads, and from which docs/models.md is
made (`python docs/generate.py`). It takes half an hour of one core; of types that are named only theirs is replaced.
"""

from __future__ import annotations

import argparse
import json
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from multiprocessing import get_context
from queue import Queue
from typing import Any

import torch
import transformers

from peftcli.analysis.support.tiny_types import model_types
from peftcli.analysis.support.trials import REFUSED, UNKNOWN, try_type
from peftcli.analysis.support.tried_types import FILE, TASKS_TRIED, TRIED, TriedTypes, faults, read_tried, without_whole
from peftcli.process_state import quiet_transformers
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TaskName

MINUTES = 20
"""Time that one type may take, on a machine that does other things, too."""


def main() -> None:
    """Try the types and write the file, a type at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types of transformers; all by default")
    parser.add_argument("--untried", action="store_true", help="only those that the file has nothing of")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--wrong", action="store_true", help="only methods of which something is wrong in the file")
    options = parser.parse_args()
    some = bool(options.types or options.untried or options.wrong)
    held = read_tried()
    if some and held.transformers != transformers.__version__:
        parser.error(f"the file is of transformers {held.transformers}: try all types with {transformers.__version__}")
    found = held.types if some else {}
    every = [(name, task) for task in TASKS_TRIED for name in model_types(task)]
    tasks_of = [
        (name, task, wrong_methods(found, name, task) if options.wrong else registry.names())
        for name, task in every
        if (not options.types or name in options.types) and not (options.untried and task in found.get(name, {}))
    ]
    workers = Queue[Worker]()
    for _ in range(options.jobs):
        workers.put(Worker())

    def of_next_worker(name: str, task: TaskName, methods: list[str]) -> dict[str, Any]:
        worker = workers.get()
        try:
            return worker.record(name, task, methods)
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(of_next_worker, *each): each for each in tasks_of if each[2]}
        for result in as_completed(waiting):
            (name, task, methods), record = waiting[result], result.result()
            found = read_tried().types if some else found  # another trial may have written meanwhile
            held_methods = found.get(name, {}).get(task, {}).get("methods", {})
            kept = {each: cells for each, cells in held_methods.items() if each not in methods}
            record["methods"] = {**kept, **record["methods"]} if record["model"] == TRIED else {}
            found.setdefault(name, {})[task] = without_whole(record)
            print(task, name, record["model"], flush=True)
            date = datetime.now(UTC).date().isoformat()
            left: dict[str, list[str]] = {task: [] for task in TASKS_TRIED}
            for each, kind in every:
                if kind not in found.get(each, {}):
                    left[kind].append(each)
            so_far = TriedTypes(transformers.__version__, torch.__version__, date, registry.names(), found, left)
            FILE.write_text(so_far.text(), encoding="utf-8")


class Worker:
    """A process that tries types; where it dies or hangs, the type says so and the next one has a new process."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def record(self, name: str, task: TaskName, methods: list[str]) -> dict[str, Any]:
        """Return the record of one type."""
        self._pool = self._pool or ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return self._pool.submit(tried, name, task, methods).result(timeout=MINUTES * 60)
        except BrokenProcessPool:
            said = "the process died"
        except TimeoutError:
            said = f"it hangs: it was not tried within {MINUTES} minutes"
        for process in list(self._pool._processes.values()):  # the pool has no public way to stop a task that hangs
            process.kill()
        self._pool.shutdown()
        self._pool = None
        return {"model": f"{UNKNOWN}{said}", "methods": {}}


def wrong_methods(found: dict[str, dict[str, Any]], name: str, task: TaskName) -> list[str]:
    """Return the methods of which something is wrong in the file; all, where nothing of the model is known."""
    record = found.get(name, {}).get(task)
    if record is None or record["model"].startswith(REFUSED):
        return []
    if record["model"] != TRIED:
        return registry.names()
    return [
        method
        for method, cells in record["methods"].items()
        if any(not text.startswith(REFUSED) for text in faults(cells, record).values())
    ]


def tried(name: str, task: TaskName, methods: list[str]) -> dict[str, Any]:
    """Return the record of one type; in a process of its own."""
    torch.set_num_threads(1)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return json.loads(json.dumps(try_type(name, task, methods)))


if __name__ == "__main__":
    main()
