"""The runs that are compared, and training them through the command line of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.numerics.outcome import Outcome, read_outcome

STEPS = 5
FIXED = (
    f"training.max_steps={STEPS}",
    "training.logging_steps=1",
    "training.device=cpu",
    "training.bf16=false",  # auto is a timed probe
    "training.gradient_checkpointing=false",  # auto asks for the free memory
    "data.num_proc=1",
    "data.val_set_size=16",
)
"""Overrides of every run: short, and nothing that the clock or the free memory decides."""
CONFIG_OVERRIDES = ("data.max_rows=80",)
METHOD_OVERRIDES = {"adalora": ("method.tinit=1", "method.tfinal=1")}
"""By config: AdaLoRA's phases must fit the run."""
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SCRUBBED = ("PEFTCLI_", "MALLOC_", "HF_", "OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "TORCH_", "ATEN_", "PYTEST_")
"""Beginnings of variables that could change a run."""


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: in the table and in the stored losses.
        recipe: its file.
        overrides: besides those of every run.
        processes: that train together.
    """

    name: str
    recipe: Path
    overrides: tuple[str, ...] = ()
    processes: int = 1


class RunFailed(Exception):
    """A run ended with an error; the message has the end of what it said."""


def runs_of(checkout: Path, tiny: dict[str, Path]) -> list[Run]:
    """Return the runs of a checkout: its own configs, and the tiny recipes that all checkouts share."""
    configs = [
        Run(file.stem, file, (*CONFIG_OVERRIDES, *METHOD_OVERRIDES.get(file.stem, ())))
        for file in sorted((checkout / "configs").glob("*.yaml"))
    ]
    tasks = [Run(f"tiny {task}", recipe) for task, recipe in tiny.items()]
    return [*configs, *tasks, Run("tiny causal_lm, 2 processes", tiny["causal_lm"], processes=2)]


def train_all(checkout: Path, runs: Sequence[Run], scratch: Path, jobs: int) -> dict[str, Outcome | RunFailed]:
    """Train the runs with a checkout's code, a few at a time; return by name what each left or how it failed.

    Args:
        scratch: an existing directory for all that the runs write, caches included.
    """
    check_code(checkout, scratch)

    def one(run: Run) -> Outcome | RunFailed:
        try:
            return train(checkout, run, scratch / run.name.replace(" ", "-"))
        except RunFailed as failure:
            return failure

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip([run.name for run in runs], pool.map(one, runs), strict=True))


def check_code(checkout: Path, scratch: Path) -> None:
    """Make sure that a run takes the checkout's code, not an installed copy.

    Raises:
        RuntimeError: it takes another one.
    """
    command = [sys.executable, "-c", "import peftcli; print(peftcli.__file__)"]
    done = subprocess.run(command, cwd=scratch, env=_environment(checkout, scratch), capture_output=True, text=True)
    if not Path(done.stdout.strip()).is_relative_to(checkout):
        raise RuntimeError(f"the code of {checkout} is not what runs: {done.stdout}{done.stderr}")


def train(checkout: Path, run: Run, scratch: Path) -> Outcome:
    """Train one run in an empty directory of its own.

    Raises:
        RunFailed: the command failed, or left nothing to compare.
    """
    scratch.mkdir()
    output = scratch / "run"
    command = [sys.executable, "-m", "peftcli", "train", str(run.recipe), *FIXED, *run.overrides, "-o", str(output)]
    command += ["--quiet"] if run.processes == 1 else ["--quiet", "--num-processes", str(run.processes)]
    done = subprocess.run(command, cwd=scratch, env=_environment(checkout, scratch), capture_output=True, text=True)
    if done.returncode != 0:
        raise RunFailed(f"exit code {done.returncode}: {done.stderr[-2000:].strip()}")
    try:
        return read_outcome(output)
    except (OSError, ValueError) as error:
        raise RunFailed(str(error)) from error


def _environment(checkout: Path, scratch: Path) -> dict[str, str]:
    """Return the environment of a run: this checkout's code, one thread, no network, caches of its own."""
    cache = str(scratch / "cache")
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER and not name.startswith(SCRUBBED)}
    return {
        **kept,
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": cache,
        "XDG_CACHE_HOME": cache,
        "PEFTCLI_CACHE": cache,
    }
