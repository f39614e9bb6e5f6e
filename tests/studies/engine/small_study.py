"""Small studies: a recipe of a tiny model in a study's directory, a watcher that remembers, and workers as processes.

`python -m tests.studies.engine.small_study DIR STORAGE HOLD NAME...` is a worker: it opens the study, trains the trials
of these names, and prints a line of JSON for everything that its watcher hears. HOLD is `NAME@STEP`: after that
evaluation the trial waits until a line comes on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from peftcli.errors import PeftCliError
from peftcli.studies.engine.study import Study
from peftcli.studies.engine.trial import CurvePoint, Trial, TrialResult

ASKED = {"recipe": "small", "seeds": [0]}
ROOT = Path(__file__).resolve().parents[3]


class Remembers:
    """A watcher that remembers what it hears as (event, name of the trial), and may act on it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def started(self, trial: Trial) -> None:
        self.hear("started", trial.name)

    def progressed(self, trial: Trial, step: int, total_steps: int) -> None:
        assert 0 < step <= total_steps

    def evaluated(self, trial: Trial, point: CurvePoint) -> None:
        self.hear("evaluated", trial.name, point.step)

    def ended(self, trial: Trial, result: TrialResult) -> None:
        self.hear("ended", trial.name, result.state)

    def note(self, text: str) -> None:
        self.hear("note", text)

    def hear(self, event: str, *about: Any) -> None:
        self.heard.append((event, about[0]))

    def of(self, event: str) -> list[str]:
        return [name for what, name in self.heard if what == event]


class Prints(Remembers):
    """A watcher that prints a line for everything."""

    def hear(self, event: str, *about: Any) -> None:
        print(json.dumps([event, *about]), flush=True)


class Holds:
    """Lets a trial wait after the evaluation of a step, until a line comes on standard input; stops nothing."""

    def __init__(self, trial: str, step: int) -> None:
        self.trial, self.step = trial, step

    def should_stop(self, trial: Trial, curve: Sequence[CurvePoint]) -> bool:
        if (trial.name, curve[-1].step) == (self.trial, self.step):
            print(json.dumps(["held", trial.name]), flush=True)
            sys.stdin.readline()
        return False


class Worker:
    """A worker in a process of its own.

    Args:
        hold: `NAME@STEP`; see above.
    """

    def __init__(self, study: Path, names: Sequence[str], storage: str | None = None, hold: str = "-@0") -> None:
        command = [sys.executable, "-m", "tests.studies.engine.small_study", str(study), storage or "-", hold]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([*command, *names], cwd=ROOT, env=environment, text=True, **pipes)
        self.heard: list[list[Any]] = []

    def until(self, *event: Any) -> list[Any]:
        """Read on until a line begins with these words; return it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            self.heard.append(found)
            if found[: len(event)] == list(event):
                return list(found)
        raise AssertionError(f"no {event} in {self.heard}: {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the errors."""
        out, errors = self.process.communicate()
        self.heard += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, errors

    def of(self, event: str) -> list[str]:
        return [line[1] for line in self.heard if line[0] == event]


def write_recipe(study: Path, loaded: Any, name: str = "small") -> str:
    """Put a recipe among those of a study; return what a trial calls it."""
    file = study / "recipes" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    tree = yaml.safe_load(Path(loaded.path).read_text(encoding="utf-8"))
    del tree["output_dir"]
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return f"recipes/{name}.yaml"


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def main() -> int:
    directory, storage, hold, *names = sys.argv[1:]
    held, _, step = hold.partition("@")
    try:
        study = Study.open(Path(directory), ASKED, storage=None if storage == "-" else storage)
        trials = [Trial(name, "recipes/small.yaml") for name in names]
        study.run(trials, jobs=1, watch=Prints(), stop_early=Holds(held, int(step)))
    except PeftCliError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
