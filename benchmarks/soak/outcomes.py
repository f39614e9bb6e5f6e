"""How cases ended: the file of outcomes, which a second start reads, and the table."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

TITLES = {
    "kill": "SIGKILL at a file event", "time": "SIGKILL at a random time", "flip": "a flipped bit", "cut": "a cut file",
    "disk": "a full disk", "recipe": "a random recipe", "data": "a random data file", "adapter": "a changed adapter",
}  # fmt: skip
"""First part of a case's id: what the table calls it."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Args:
        ended_well: whether nothing was lost.
        how: `the same after a kill`, `refused`, ...; what went wrong where it ended badly.
    """

    ended_well: bool
    how: str


def well(how: str) -> Outcome:
    """Return an outcome in which nothing was lost."""
    return Outcome(True, how)


def bad(how: str) -> Outcome:
    """Return an outcome in which something was lost, or that was no answer."""
    return Outcome(False, " ".join(how.split()))


class Journal:
    """A file of outcomes, one JSON object a line; several processes append to it.

    Args:
        path: the file; its first line says what the outcomes are of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, campaign: dict[str, object]) -> None:
        """Start the file, or go on with it.

        Raises:
            SystemExit: its outcomes are those of another commit or seed.
        """
        if not self.path.exists():
            self.path.write_text(json.dumps(campaign) + "\n", encoding="utf-8")
        elif (found := self._lines()[0]) != campaign:
            raise SystemExit(f"{self.path} holds outcomes of {found}, and this is {campaign}: name another file")

    def add(self, case: str, outcome: Outcome, cpu_seconds: float) -> None:
        """Append an outcome, by one call of the system."""
        line = json.dumps({"case": case, **asdict(outcome), "cpu_seconds": round(cpu_seconds, 2)})
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def outcomes(self) -> dict[str, Outcome]:
        """Return case -> outcome of all that is done."""
        return {line["case"]: Outcome(line["ended_well"], line["how"]) for line in self._lines()[1:]}

    def _lines(self) -> list[dict[str, object]]:
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue  # cut off when the campaign was killed: that case is done again
        return found


def table(outcomes: dict[str, Outcome], seed: int) -> str:
    """Return the table, and below it one case of each kind of bad end with the way to repeat it."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    failures: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case, outcome in sorted(outcomes.items()):
        kind = case.partition("/")[0]
        kinds[kind][outcome.how if outcome.ended_well else ""] += 1
        if not outcome.ended_well:
            failures[kind, _shape(outcome.how)].append(case)
    lines = ["| what was done | cases | ended well | how | badly |", "|---|---|---|---|---|"]
    for kind, ends in [*kinds.items(), ("all", Counter())]:
        counted = sum(kinds.values(), Counter()) if kind == "all" else ends
        total, lost = counted.total(), counted[""]
        how = "" if kind == "all" else ", ".join(f"{number} {end}" for end, number in ends.most_common() if end)
        lines.append(f"| {TITLES.get(kind, kind)} | {total:,} | {total - lost:,} | {how} | {lost:,} |")
    for (_, how), cases in sorted(failures.items(), key=lambda item: -len(item[1])):
        lines.append(f"\n{len(cases)} x {how}\n    python -m benchmarks.soak --seed {seed} --only {cases[0]}")
    return "\n".join(lines)


def _shape(how: str) -> str:
    """Return a bad end without its numbers, so that those of one kind count together."""
    return re.sub(r"\d+", "N", how)


def failed(outcomes: Iterable[Outcome]) -> bool:
    """Return whether any case ended badly."""
    return not all(outcome.ended_well for outcome in outcomes)
