"""A recommendation on the terminal: what it is for, each line with its reason, and what to paste."""

from __future__ import annotations

import shutil
import textwrap

from rich.console import Console

from peftcli.analysis.advice.advised_recipe import lines_to_paste
from peftcli.analysis.advice.recommendation import Advice, Recommendation
from peftcli.analysis.advice.situation import Situation
from peftcli.console.output import print_whole
from peftcli.record.shown_numbers import byte_size, count, short_count

_KINDS = {"encoder": "encoder", "decoder": "decoder", "encoder_decoder": "encoder-decoder"}
_WIDEST = 100


def print_recommendation(console: Console, found: Recommendation) -> None:
    """Print a recommendation."""
    width = min(_WIDEST, shutil.get_terminal_size((80, 24)).columns) - 1
    for label, text in _situation(found.now):
        _print(console, f"{label:<9}", text, width)
    for note in found.notes:
        _print(console, "note     ", note, width)
    for line in found.lines:
        console.print()
        _print_line(console, line, width)
    console.print("\nto paste into the recipe", highlight=False)
    print_whole(console, textwrap.indent(lines_to_paste(found.lines), "  ").rstrip())


def _situation(now: Situation) -> list[tuple[str, str]]:
    size = f"{_KINDS[now.kind]}, {short_count(now.numbers)} numbers, width {now.width}"
    rows = "not known"
    if now.rows is not None:
        rows = f"{count(now.rows)} rows to train on"
        if not now.labels and now.supervised_tokens is not None:
            rows += f", {count(now.supervised_tokens)} tokens to learn"
    memory = [] if now.memory is None else [("memory", byte_size(now.memory))]
    return [("model", f"{now.model}: {size}"), ("task", now.task), ("data", rows), *memory]


def _print_line(console: Console, line: Advice, width: int) -> None:
    value = f"[{', '.join(map(str, line.value))}]" if isinstance(line.value, list) else str(line.value)
    value = f"{line.value:g}" if isinstance(line.value, float) else value
    console.print(f"{line.key}: {value}", style="bold", markup=False, highlight=False)
    dated = f"{line.source} ({line.date})" if line.date else line.source
    parts = (("why", line.reason), ("found on", line.scope), ("limit", line.limit), ("source", dated))
    for label, text in parts:
        _print(console, f"  {label:<9}", text, width)
    print_whole(console, f"  {'against':<9}{line.against}")


def _print(console: Console, label: str, text: str, width: int) -> None:
    wrapped = textwrap.wrap(
        text, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    )
    for part in wrapped:
        print_whole(console, part)
