"""Processes that are a world of each size in turn: `python -m tests.matrix.several_worlds PLAN`.

A plan is a JSON file: a list of worlds, each with its `size`, a `port` and `jobs`. The processes of a rank below the
size do the jobs together; the others wait for a larger world. One process imports torch and all of them are its forks.
"""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftcli.errors import PeftCliError, Stopped

Job = dict[str, Any]
ENDS_WITHIN = 600.0
"""Seconds, on a machine that does other things, too."""


def in_worlds(home: Path, worlds: Sequence[tuple[int, list[Job]]]) -> list[list[Any]]:
    """Let processes do the jobs of each world, (size, jobs) each; return what the main process gave for each job.

    Raises:
        AssertionError: a process failed.
    """
    plan = home / "plan.json"
    plan.write_text(json.dumps([{"size": size, "port": _port(), "jobs": jobs} for size, jobs in worlds]))
    command = [sys.executable, "-m", "tests.matrix.several_worlds", str(plan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment, start_new_session=True) as child:
        try:
            assert child.wait(ENDS_WITHIN) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    found: list[list[Any]] = json.loads(plan.with_suffix(".found").read_text())
    return found


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def main(plan: Path) -> int:
    """Start a process for each rank of the largest world; return the exit code."""
    from peftcli.inference import evaluate_run, predict_run  # noqa: F401  # imported once for all
    from peftcli.merging import merge_run  # noqa: F401
    from peftcli.training import run  # noqa: F401

    worlds = json.loads(plan.read_text())
    forks = multiprocessing.get_context("fork")
    ranks = [
        forks.Process(target=_rank, args=(rank, worlds, plan), daemon=True)
        for rank in range(max(world["size"] for world in worlds))
    ]
    for process in ranks:
        process.start()
    waiting = list(ranks)
    while waiting:  # never for nothing: that would be for ever
        multiprocessing.connection.wait([process.sentinel for process in waiting])
        waiting = [process for process in waiting if process.is_alive()]
        if any(process.exitcode for process in ranks):
            return 1
    return 0


def _rank(rank: int, worlds: list[dict[str, Any]], plan: Path) -> None:
    """Do this rank's share of every world."""
    found = [_in_world(rank, **world) for world in worlds if rank < world["size"]]
    if rank == 0:
        plan.with_suffix(".found").write_text(json.dumps(found))


def _in_world(rank: int, size: int, port: str, jobs: list[Job]) -> list[Any]:
    from accelerate.state import AcceleratorState, PartialState
    from torch import distributed

    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({key: str(value) for key, value in own.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    found = [JOBS[job.pop("kind")](rank, **job) for job in jobs]
    if distributed.is_initialized():
        distributed.destroy_process_group()
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    return found


def train(rank: int, recipe: str, stop_at: int | None = None, resume: bool = False) -> list[float] | str:
    """Train a recipe and return the losses; a UserError's text where it is refused."""
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import load_recipe
    from peftcli.training import run
    from tests.recipes import CtrlC, Recorder

    recorder = CtrlC(stop_at) if stop_at and rank == 0 else Recorder()
    try:
        run.train(load_recipe(recipe, [], NAMES), reporter=recorder, overwrite=not resume, resume=resume)
    except Stopped:
        assert stop_at is not None
    except PeftCliError as error:
        return str(error)
    return recorder.losses


def evaluate(rank: int, run: str, data: str | None = None) -> dict[str, Any]:
    """Evaluate a run."""
    from peftcli.inference.evaluate_run import evaluate_run

    return evaluate_run(run, data)


def predict(rank: int, run: str, data: str) -> list[dict[str, Any]]:
    """Predict a file with a run."""
    from peftcli.inference.predict_run import predict_run

    rows = list(predict_run(run, data))
    assert not rank or not rows
    return rows


def merge(rank: int, run: str, output: str) -> dict[str, Any]:
    """Merge a run; only the main process writes."""
    from peftcli.merging.merge_run import merge_run

    return merge_run(Path(run), Path(output)).as_dict()


JOBS: dict[str, Callable[..., Any]] = {"train": train, "evaluate": evaluate, "predict": predict, "merge": merge}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
