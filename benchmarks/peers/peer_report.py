"""From the record to the tables of RESULTS.md. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.common.record import spread
from benchmarks.peers.peer_table import OURS, SIDES, Side

Record = dict[str, Any]
BEGIN = "<!-- peers: written by `python -m benchmarks.peers` from peers.json -->"
END = "<!-- end of peers -->"
COLUMNS = (
    "side", "seconds (lowest to highest)", "tok/s", "ours is so many times as fast", "whole process s",
    "peak memory GiB", "ours takes of it", "first loss", "what it is",
)  # fmt: skip


def table_of(side: Side, dtype: str) -> str:
    """Return the name of the table that a side is in."""
    return f"{side.work.partition('/')[0]}/{dtype}"


def figures(record: Record, tokens: int) -> Record:
    """Return what a side's row says: medians over its repeats, and ratios to this project's run of the same repeat.

    Args:
        record: of a side, with at least one run.
        tokens: of the rows that `many` has and `few` has not.
    """
    runs = record["runs"]
    seconds = [more(run) for run in runs]
    pairs = [(run, run["ours"]) for run in runs if run["ours"]]
    speeds = [more(run) / more(ours) for run, ours in pairs]
    memories = [ours["many"]["peak_bytes"] / run["many"]["peak_bytes"] for run, ours in pairs]
    return {
        "seconds": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds),
        "speed": tokens / statistics.median(seconds),
        "whole": statistics.median(run["many"]["seconds"] for run in runs),
        "peak_bytes": statistics.median(run["many"]["peak_bytes"] for run in runs),
        "first_loss": runs[0]["few"]["losses"][0],
        "ratios": speeds, "ratio": statistics.median(speeds) if speeds else None,
        "memory_ratio": statistics.median(memories) if memories else None,
    }  # fmt: skip


def more(run: Record) -> float:
    """Return the seconds that the rows beyond `few` took: what precedes the first step is in both runs."""
    return float(run["many"]["seconds"] - run["few"]["seconds"])


def page_part(stored: Record) -> str:
    """Return what stands between the marks of RESULTS.md."""
    if not stored.get("tables"):
        return "Not measured yet."
    parts = [_memory_line(stored)] if "fresh_pages" in stored else []
    for name, table in sorted(stored["tables"].items()):
        parts += [_heading(name, table), *_fastest(table), "\n".join(_rows(name, table))]
    return "\n\n".join(parts)


def _heading(name: str, table: Record) -> str:
    shared = table["conditions"]
    dates = sorted({record["date"] for record in table["sides"].values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"### {name}\n\n{shared['machine']}, {shared['threads']} threads; {shared['model']}; {shared['many']} rows "
        f"minus {shared['few']}, {shared['tokens']:,} tokens; measured {when}."
    )


def _fastest(table: Record) -> Iterable[str]:
    """Yield the sentence on the fastest peer; the encoder's methods have one peer each."""
    tokens = table["conditions"]["tokens"]
    found = {
        name: figures(record, tokens) for name, record in table["sides"].items() if record["runs"] and "/" not in name
    }
    others = {name: one for name, one in found.items() if name != OURS and one["ratio"] is not None}
    if others:
        name = min(others, key=lambda one: others[one]["ratio"])
        best, least = others[name], min(others, key=lambda one: others[one]["peak_bytes"])
        yield (
            f"The fastest peer is {name}: ours is **{best['ratio']:.2f}** times as fast{_spread(best)}. The peer "
            f"of the least memory is {least}: ours takes **{others[least]['memory_ratio']:.2f}** of it."
        )


def _memory_line(stored: Record) -> str:
    pages = stored["fresh_pages"]
    said = (
        f"The machine's memory: {pages['fresh']:.1f} GB/s where a process takes it anew (written once, then given "
        f"back), {pages['held']:.1f} GB/s where it holds it already"
    )
    gains = []
    for name, table in sorted(stored["tables"].items()):
        sides = [table["sides"].get(side, {}).get("runs") for side in ("hf", "hf+malloc")]
        if all(sides):
            plain, kept = (statistics.median(map(more, runs)) for runs in sides)
            gains.append(f"{plain / kept:.2f} times as fast in {name.partition('/')[2]}")
    if gains:
        said += f"; HF peft whose freed memory is kept (`hf+malloc`) is {' and '.join(gains)} as without"
    return said + "."


def _rows(name: str, table: Record) -> list[str]:
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    kind, _, dtype = name.partition("/")
    listed = [side for side in SIDES if table_of(side, dtype) == f"{kind}/{dtype}"]
    return head + [line(side, table["sides"].get(side.name), table["conditions"]["tokens"]) for side in listed]


def line(side: Side, record: Record | None, tokens: int) -> str:
    """Return one row of a table; a side without figures says why."""
    if record is None or not record["runs"]:
        why = f"does not run here: {record['failed']}" if record else "not measured"
        return f"| {side.name} | {why.replace('|', '/')} |" + " |" * (len(COLUMNS) - 2)
    found = figures(record, tokens)
    fields = [
        side.name,
        f"{found['seconds']:.1f} ({found['lowest']:.1f} to {found['highest']:.1f})",
        f"{found['speed']:,.0f}",
        ""
        if side.name.split("/")[0] == OURS or found["ratio"] is None
        else f"**{found['ratio']:.2f}**{_spread(found)}",
        f"{found['whole']:.1f}",
        f"{found['peak_bytes'] / 2**30:.2f}",
        "" if found["memory_ratio"] is None else f"{found['memory_ratio']:.2f}",
        f"{found['first_loss']:.4f}",
        f"{side.says} ({record['versions']})",
    ]
    return f"| {' | '.join(fields)} |"


def _spread(found: Record) -> str:
    return spread(min(found["ratios"]), max(found["ratios"]), len(found["ratios"]))
