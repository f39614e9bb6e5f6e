"""From the repeats of each side to the table of RESULTS.md. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.common.record import spread

Record = dict[str, Any]
BEGIN = "<!-- prediction: written by `python -m benchmarks.prediction` from prediction.json -->"
END = "<!-- end of prediction -->"
COLUMNS = (
    "side", "seconds (lowest to highest)", "tok/s", "ours is so many times as fast", "whole process s",
    "peak memory GiB", "ours takes of it", "agrees with ours",
)  # fmt: skip
CLOSE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest difference of mean losses that agree, relative."""


def more(run: Record) -> float:
    """Return the seconds that the rows beyond `few` took: what precedes the first prediction is in both runs."""
    return float(run["many"]["seconds"] - run["few"]["seconds"])


def agreement(work: Record, side: str, dtype: str) -> str:
    """Return in words how far what a side predicts is what ours does."""
    ours, theirs = (work["sides"][name]["found"] for name in (work["ours"], side))
    said = []
    for name in work["sides"]:  # `peft eval` and `peft predict` give a part each
        found = work["sides"][name]["found"]
        if name.startswith("peft"):
            ours = {**ours, **found}
    if "predictions" in theirs and "predictions" in ours:
        same = sum(a == b for a, b in zip(ours["predictions"], theirs["predictions"], strict=True))
        said.append(f"{same} of {len(theirs['predictions'])} predictions")
    if "loss" in theirs and "loss" in ours:
        apart = abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"])
        said.append(
            f"loss {theirs['loss']:.4f}, {apart:.0e} apart" + ("" if apart < CLOSE[dtype] else " (**differs**)")
        )
    return "; ".join(said)


def page_part(stored: Record) -> str:
    """Return what stands between the marks of RESULTS.md."""
    if not stored.get("tables"):
        return "Not measured yet."
    return "\n\n".join(part for name in sorted(stored["tables"]) for part in _table(stored["tables"][name]))


def _table(work: Record) -> Sequence[str]:
    shared = work["conditions"]
    heading = (
        f"**{work['says']}**, {shared['dtype']}: {shared['many']} rows minus {shared['few']}, of {shared['model']}; "
        f"{shared['machine']}, {shared['threads']} threads; {shared['versions']}; commit {work['commit']}, "
        f"measured {work['date']}."
    )
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [line(work, name) for name in work["sides"] if work["sides"][name]["runs"]]
    return heading, "\n".join(lines)


def line(work: Record, name: str) -> str:
    """Return one line of a table: medians, and ratios to this project's run of the same repeat."""
    side = work["sides"][name]
    seconds = [more(run) for run in side["runs"]]
    fields = [name, f"{statistics.median(seconds):.1f}{spread(min(seconds), max(seconds), len(seconds))}"]
    fields.append(f"{side['tokens'] / statistics.median(seconds):,.0f}")
    memory = statistics.median(run["many"]["peak_bytes"] for run in side["runs"])
    share = ""
    if name.startswith("peft"):
        fields.append("")
    else:
        pairs = list(zip(side["runs"], work["sides"][work["ours"]]["runs"], strict=False))
        ratios = [more(theirs) / more(own) for theirs, own in pairs]
        fields.append(f"**{statistics.median(ratios):.2f}**{spread(min(ratios), max(ratios), len(ratios))}")
        held = [own["many"]["peak_bytes"] / theirs["many"]["peak_bytes"] for theirs, own in pairs]
        share = f"**{statistics.median(held):.2f}**"
    whole = statistics.median(run["many"]["seconds"] for run in side["runs"])
    agrees = "" if name.startswith("peft") else agreement(work, name, work["conditions"]["dtype"])
    return f"| {' | '.join([*fields, f'{whole:.1f}', f'{memory / 2**30:.2f}', share, agrees])} |"
