"""What `peft estimate` and `peft train --dry-run` print: a run's memory by part, its time, and what would fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.console.output import print_table, print_whole, result_console, table
from peftcli.console.terminal import say
from peftcli.record.shown_numbers import byte_size, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftcli.analysis.estimate.memory_options import Option
    from peftcli.analysis.estimate.memory_parts import Estimate

_BASIS = {
    "config": "from the config alone, rows of max_length",
    "data": "from the config and the recipe's rows",
    "measured": "measured in two steps",
}


def print_estimate(found: Estimate) -> None:
    """Print the parts of one device, the time, and how sure they are."""
    device = found.devices[0]
    parts = dict(device.parts)
    evaluation = parts.pop("evaluation", 0)
    rows = [[part, byte_size(size)] for part, size in parts.items() if size]
    several = f" of each of {len(found.devices)} devices" if len(found.devices) > 1 else ""
    rows.append([f"peak{several}", byte_size(device.peak_memory_bytes)])
    print_table(result_console(), table([_BASIS[found.tier], "memory"], rows, numeric=[1]))
    if evaluation:
        say(
            f"an evaluation needs {byte_size(evaluation)} beside the model; the peak counts it if a step needs less",
            result=True,
        )
    unknown = "unknown until peft estimate --measure has timed steps here"
    say(f"time: {unknown if found.seconds is None else duration(found.seconds)}", result=True)
    say(f"gradient checkpointing: {'on' if found.recomputes else 'off'}", result=True)
    say(f"expected error of the peak: {found.expected_error}", result=True)


def print_options(settings: Sequence[Option], methods: Sequence[Option], limit: int) -> None:
    """Print which settings and methods fit into a limit, and what to type."""
    rows = [[each.overrides or "as it is", *_cells(each)] for each in settings]
    print_table(result_console(), table(["settings", "peak", "saves", "fits"], rows, numeric=[1, 2]))
    if methods:
        heading = f"methods, with {methods[0].overrides.partition(' ')[2] or 'the settings of the recipe'}"
        rows = [[each.method, *_cells(each)] for each in sorted(methods, key=lambda option: option.peak)]
        print_table(result_console(), table([heading, "peak", "saves", "fits"], rows, numeric=[1, 2]))
    fitting = [option for option in [*settings, *methods] if option.fits]
    if fitting:
        print_whole(result_console(), f"use: {fitting[0].overrides or 'the recipe as it is'}")
        return
    least = min([*settings, *methods], key=lambda option: option.peak)
    nearest = f"{least.overrides or 'as it is'} ({byte_size(least.peak)})"
    say(f"nothing fits into {byte_size(limit)}; nearest: {nearest}", result=True)


def _cells(option: Option) -> list[str]:
    saves = f"{byte_size(-option.saves)} more" if option.saves < 0 else byte_size(option.saves)
    return [byte_size(option.peak), saves, "yes" if option.fits else "no"]
