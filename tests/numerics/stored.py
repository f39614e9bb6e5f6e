"""The stored losses: what each run gave, and on which machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.numerics.outcome import Outcome

FILE = Path(__file__).resolve().parent / "losses.json"


@dataclass(frozen=True)
class Stored:
    """What the file holds.

    Args:
        machine: the facts of `machine.this_machine`.
        outcomes: by the run's name, without tensors.
    """

    machine: dict[str, str]
    outcomes: dict[str, Outcome]


def read_stored(file: Path = FILE) -> Stored:
    """Return what is stored."""
    tree = json.loads(file.read_text(encoding="utf-8"))
    outcomes = {name: Outcome(run["losses"], None, run["tensors"]) for name, run in tree["runs"].items()}
    return Stored(tree["machine"], outcomes)


def write_stored(stored: Stored, file: Path = FILE) -> None:
    """Write the file, one line for each fact and each run. A float is written with all its digits."""
    runs = {name: {"losses": found.losses, "tensors": found.digests} for name, found in stored.outcomes.items()}
    machine, trained = (_lines(entries) for entries in (stored.machine, runs))
    file.write_text(f'{{\n"machine": {machine},\n"runs": {trained}\n}}\n', encoding="utf-8")


def _lines(entries: Mapping[str, object]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()) + "\n}"
