"""All kinds of cases, which of them are done, and doing a worker's share of them."""

from __future__ import annotations

import hashlib
import math
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak import damage, full_disk, kills
from benchmarks.soak.fuzz import adapters, recipes, rows
from benchmarks.soak.outcomes import Journal, Outcome
from benchmarks.soak.workshop import Workshop


@dataclass(frozen=True)
class Kind:
    """One kind of case.

    Args:
        cases: yields the names of all, or of those that a sample is drawn from.
        run: does one.
        sampled: how many of them a sample takes.
    """

    cases: Callable[[Workshop, bool], Iterator[str]]
    run: Callable[[Workshop, str], Outcome]
    sampled: int


KINDS = {
    "kill": Kind(kills.event_cases, kills.at_event, 4),
    "time": Kind(kills.time_cases, kills.at_a_time, 0),
    "flip": Kind(damage.flips, damage.flip, 3),
    "cut": Kind(damage.cuts, damage.cut, 1),
    "disk": Kind(full_disk.cases, full_disk.run, 1),
    "recipe": Kind(recipes.cases, recipes.run, 20),
    "data": Kind(rows.cases, rows.run, 8),
    "adapter": Kind(adapters.cases, adapters.run, 4),
}


def chosen(shop: Workshop, share: float | None, only: str) -> Iterator[str]:
    """Yield the cases of a campaign, `KIND/NAME`, those of a kind together.

    Args:
        share: of the cases of each kind, drawn by the seed; None for the sample.
        only: the name of a kind; empty for all.
    """
    for name, kind in KINDS.items():
        if only not in ("", name) or (share is None and kind.sampled == 0):
            continue
        found = [f"{name}/{case}" for case in kind.cases(shop, share is None)]
        yield from drawn(shop.seed, found, kind.sampled if share is None else math.ceil(share * len(found)))


def drawn(seed: int, cases: list[str], number: int) -> list[str]:
    """Return so many of the cases, the same for a seed whatever other cases there are."""
    if number >= len(cases):
        return cases
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}/{case}".encode()).digest())[:number]


def run_case(shop: Workshop, case: str) -> Outcome:
    """Do one case."""
    kind, _, name = case.partition("/")
    if kind not in KINDS:
        raise SystemExit(f"there is no case {case}: it starts with one of {', '.join(KINDS)}")
    return KINDS[kind].run(shop, name)


def work(
    root: Path, journal: Journal, cases: Callable[[Workshop], Iterator[str]], seed: int, part: int, parts: int
) -> None:
    """Do one part of the cases: every `parts`-th one, of those that the journal lacks."""
    shop = Workshop(root, seed)
    done, parent = journal.outcomes(), os.getppid()
    for index, case in enumerate(cases(shop)):
        if os.getppid() != parent:  # the campaign was killed
            return
        if index % parts == part and case not in done:
            start = _cpu_seconds()
            journal.add(case, run_case(shop, case), _cpu_seconds() - start)


def _cpu_seconds() -> float:
    """Return what this process and its children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
