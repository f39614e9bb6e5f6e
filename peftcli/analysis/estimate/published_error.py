"""How far off `peft estimate` was: the cells that benchmarks/memory/estimate_error.py measured. No torch here.

`published_error.json` is what the benchmark writes. What `peft estimate` prints and the table in docs/choosing.md are
made of it here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Tier = Literal["config", "data", "measured"]

KEPT = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Trial:
    """A run's peak and what was predicted for it, in bytes.

    Args:
        family: of the model.
        length: tokens of each row.
        checkpointing: whether activations are recomputed.
        trained: the peak of the process that trained.
        config: predicted from the config alone.
        measured: predicted by two steps.
    """

    family: str
    method: str
    length: int
    checkpointing: bool
    trained: int
    config: int
    measured: int

    def error(self, tier: Tier) -> float:
        """Return how far a prediction is off, in percent of what the run took; above 0 where it is too high.

        `data` was not tried apart: with rows of max_length, as here, it counts what `config` does.
        """
        return 100 * ((self.measured if tier == "measured" else self.config) / self.trained - 1)


@dataclass(frozen=True)
class Trials:
    """What was tried on one machine.

    Args:
        machine: processor, cores, threads, system, versions and date.
    """

    machine: dict[str, Any]
    cells: tuple[Trial, ...]

    def expected(self, tier: Tier) -> str:
        """Return the range of the errors in words; it is no bound."""
        errors = [cell.error(tier) for cell in self.cells]
        return f"{min(errors):+.0f} to {max(errors):+.0f}% in {len(errors)} trials on a CPU; unknown on a GPU"

    def within(self, tier: Tier, percent: float) -> int:
        """Return how many predictions were at most so many percent off."""
        return sum(abs(cell.error(tier)) <= percent for cell in self.cells)

    def as_markdown(self) -> str:
        """Return where it was measured, the range of each tier, how many reach what is aimed at, and each trial."""
        goals: tuple[tuple[Tier, int], ...] = (("config", 10), ("measured", 3))
        count, about = len(self.cells), self.machine
        where = (
            f"{about['processor']}, {about['cores']} cores, {about['threads']} threads; {about['system']}; Python "
            f"{about['python']}, torch {about['torch']}, transformers {about['transformers']}; {about['date']}:"
        )
        ranges = [
            f"- `{tier}`: {self.expected(tier)}; {self.within(tier, goal)} of {count} at most {goal}% off"
            for tier, goal in goals
        ]
        heading = ["model", "method", "tokens", "checkpointing", "trained, MB", "config", "two steps"]
        rows = [
            [cell.family, f"`{cell.method}`", str(cell.length), "yes" if cell.checkpointing else "no",
             f"{cell.trained / 1e6:,.0f}", f"{cell.error('config'):+.1f}%", f"{cell.error('measured'):+.1f}%"]
            for cell in self.cells
        ]  # fmt: skip
        table = [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]
        return "\n".join([where, "", *ranges, "", *table])


def trials_from(found: list[dict[str, Any]]) -> tuple[Trials, ...]:
    """Return what the benchmark has written as records, those of the machine that was measured last first."""
    return tuple(Trials(each["machine"], tuple(Trial(**cell) for cell in each["cells"])) for each in found)


@cache
def published_trials() -> tuple[Trials, ...]:
    """Return the trials that are shipped, by machine."""
    return trials_from(json.loads(KEPT.read_text(encoding="utf-8")))


def expected_error(tier: Tier) -> str:
    """Return the range of the errors on the machine with most trials; of several, on the one that was measured last.

    Those of other machines may be of earlier versions, too, and are in docs/choosing.md only.
    """
    return max(published_trials(), key=lambda trials: len(trials.cells)).expected(tier)


def published_markdown() -> str:
    """Return the trials of all machines as docs/choosing.md has them."""
    return "\n\n".join(trials.as_markdown() for trials in published_trials())
