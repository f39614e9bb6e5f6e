"""A disk that fills up in the middle of a command: it says so, and the same command works once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from benchmarks.soak import faults
from benchmarks.soak.child import CACHE, Ended
from benchmarks.soak.kills import second_attempt
from benchmarks.soak.outcomes import Outcome, bad
from benchmarks.soak.scenarios import SCENARIOS, Scenario
from benchmarks.soak.workshop import Workshop

MOMENTS = 50
WAYS = ("mount", "opening", "size")
"""A mounted file system is full; each opening for writing fails; files cannot grow beyond a size."""


def cases(_shop: Workshop, sample: bool) -> Iterator[str]:
    """Yield WAY/NUMBER; a sample takes no mount, which not every machine allows."""
    for number in range(MOMENTS):
        way = WAYS[number % 3]
        if not (sample and way == "mount"):
            yield f"{way}/{number}"


def run(shop: Workshop, case: str) -> Outcome:
    """Let the disk be full from a random moment of a scenario on."""
    draw = shop.draw(f"disk/{case}")
    scenario = draw.choice(list(SCENARIOS.values()))
    reference = shop.reference(scenario)
    place = shop.start(scenario.state)
    way = case.partition("/")[0]
    room, fault = nullcontext(), None
    if way == "mount" and shop.memory is not None:
        room = shop.memory.room(int(reference.written * draw.random()))
    elif way == "size":
        fault = faults.file_limit(int(reference.largest * draw.random() ** 2))
    else:
        fault = faults.full_from(draw.randint(1, len(reference.events)))
    with room:
        first = shop.peft(*scenario.command, fault=fault)
    if trouble := _trouble(scenario, first, str(place)):
        return bad(f"{scenario.name}: {trouble}")
    return second_attempt(shop, scenario, "said, the same once there is room" if first.code else "did without")


def _trouble(scenario: Scenario, first: Ended, place: str) -> str | None:
    """Return what is wrong with how a command ended on a full disk."""
    if fault := first.fault():
        return fault
    names = (*scenario.outputs, CACHE, place)
    if first.code and not any(name in first.err for name in names):
        return f"it does not say where: {first.err.strip()[:150]}"
    return None
