"""SIGKILL at every file event of each command, or at a random time; then the command again, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from benchmarks.soak import faults, results
from benchmarks.soak.child import Ended
from benchmarks.soak.outcomes import Outcome, bad, well
from benchmarks.soak.scenarios import SCENARIOS, VERIFIED, Scenario
from benchmarks.soak.workshop import Workshop

RANDOM_TIMES = 200


def event_cases(shop: Workshop, sample: bool) -> Iterator[str]:
    """Yield SCENARIO/NUMBER for each file event of each scenario."""
    for scenario in list(SCENARIOS.values())[: 2 if sample else None]:
        for number in range(1, len(shop.reference(scenario).events) + 1):
            yield f"{scenario.name}/{number}"


def time_cases(_shop: Workshop, sample: bool) -> Iterator[str]:
    """Yield the numbers of the random times; none in a sample, where nothing depends on time."""
    yield from map(str, range(0 if sample else RANDOM_TIMES))


def at_event(shop: Workshop, case: str) -> Outcome:
    """Kill a scenario at one of its file events."""
    name, _, number = case.partition("/")
    scenario = SCENARIOS[name]
    shop.reference(scenario)
    shop.start(scenario.state)
    return gone_on(shop, scenario, shop.peft(*scenario.command, fault=faults.kill_at(int(number))))


def at_a_time(shop: Workshop, case: str) -> Outcome:
    """Kill a scenario at a random moment of the time that it takes."""
    draw = shop.draw(f"time/{case}")
    scenario = draw.choice([*SCENARIOS.values(), VERIFIED])
    seconds = shop.seconds(scenario) * draw.random()
    shop.start(scenario.state)
    return gone_on(shop, scenario, shop.peft(*scenario.command, kill_after=seconds))


def gone_on(shop: Workshop, scenario: Scenario, first: Ended) -> Outcome:
    """Return what became of a scenario whose command was killed: what is there is whole, and a second attempt works."""
    if not first.killed and (fault := first.fault()):
        return bad(f"before the kill: {fault}")
    return second_attempt(shop, scenario, "the same after a kill" if first.killed else "it was done before")


def second_attempt(shop: Workshop, scenario: Scenario, how: str) -> Outcome:
    """Return whether what a disturbed command left is whole or absent, and its second attempt gives the reference."""
    expected = shop.reference(scenario).result
    if not scenario.resumed:
        found = results.result(shop.now, scenario.outputs)
        if found and (different := results.difference(expected, found)):
            return bad(f"half an output is left: {different}")
        for output in scenario.outputs:
            path = shop.now / output
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    second = shop.peft(*scenario.again)
    if second.code or second.fault():
        return bad(f"the second attempt: {second.fault() or second.err.strip()[:200]}")
    found = results.result(shop.now, scenario.outputs, second if scenario.prints else None)
    if different := results.difference(expected, found):
        return bad(f"another result: {different}")
    if left := results.leftovers(shop.now):
        return bad(f"left behind: {', '.join(left[:3])}")
    return well(how)
