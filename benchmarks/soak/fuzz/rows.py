"""Random rows in every format and compression, and damaged files, through `peft inspect`: rows or an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from benchmarks.soak.fuzz.changes import ODD_VALUES, changed_bytes, odd_value
from benchmarks.soak.material import FORMATS, WORDS, encoded_rows
from benchmarks.soak.outcomes import Outcome, bad, well
from benchmarks.soak.workshop import Workshop

FILES = 3000
COLUMNS = (
    "text", "label", "labels", "messages", "conversations", "prompt", "completion", "question", "answer", "instruction",
    "input", "output", "instances", "tokens", "tags", "input_ids", "target", "tools", "system", "chosen", "images",
)  # fmt: skip
COLUMN_SETS = (
    ("prompt", "completion"),
    ("messages",),
    ("text",),
    ("instruction", "input", "output"),
    ("text", "label"),
)
"""Of the formats: half of the files have one of these, so that more than a few are read to their end."""
RECIPES = ("best.yaml", "classes.yaml")


def cases(_shop: Workshop, _sample: bool) -> Iterator[str]:
    """Yield the numbers of the files."""
    yield from map(str, range(FILES))


def run(shop: Workshop, case: str) -> Outcome:
    """Inspect a file of random rows, or one that is damaged."""
    draw = shop.draw(f"data/{case}")
    place = shop.start("fresh")
    suffix, recipe = draw.choice((*FORMATS, "txt")), draw.choice(RECIPES)
    path = place / f"fuzzed.{suffix}"
    try:
        raw = encoded_rows(suffix, _rows(draw)) if draw.random() < 0.7 else (place / f"rows.{suffix}").read_bytes()
    except (OSError, ValueError, TypeError, OverflowError, NotImplementedError):  # the format cannot hold such rows
        raw = draw.randbytes(draw.randrange(400))
    path.write_bytes(changed_bytes(draw, raw) if draw.random() < 0.5 else raw)
    options = [f"data.path={path.name}", "data.val_set_size=0", f"data.on_error={draw.choice(('fail', 'skip'))}"]
    if recipe == "best.yaml" and draw.random() < 0.5:
        options.append(f"data.chat_template={draw.choice(('chatml', 'gemma'))}")
    ended = shop.peft("inspect", recipe, *options)
    if fault := ended.fault():
        return bad(f"{suffix}: {fault}")
    if ended.code and path.name not in ended.err:
        return bad(f"{suffix}: refused without naming the file: {ended.err.strip()[:150]}")
    return well("refused" if ended.code else "read")


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    columns = draw.choice(COLUMN_SETS) if draw.random() < 0.5 else draw.sample(COLUMNS, draw.randint(1, 4))
    return [{name: _value(draw, name) for name in columns} for _ in range(draw.randint(1, 5))]


def _value(draw: random.Random, column: str) -> Any:
    """Return a value that fits the column, one that does not, or turns of a conversation."""
    if draw.random() < 0.05:
        return odd_value(draw)
    if column in ("messages", "conversations", "prompt", "completion", "chosen") and draw.random() < 0.6:
        return [_turn(draw) for _ in range(draw.randrange(5))]
    if column in ("tokens", "tags", "labels", "instances", "tools"):
        return [draw.choice(WORDS) for _ in range(draw.randrange(4))]
    return draw.randrange(128) if draw.random() < 0.1 else " ".join(draw.choices(WORDS, k=draw.randrange(6)))


def _turn(draw: random.Random) -> dict[str, Any]:
    role, text = draw.choice((("role", "content"), ("role", "content"), ("from", "value")))
    turn: dict[str, Any] = {role: draw.choice(("user", "assistant", "user", "assistant", "system", "tool", "x"))}
    turn[text] = draw.choice(ODD_VALUES) if draw.random() < 0.1 else draw.choice(WORDS)
    if draw.random() < 0.2:
        turn[draw.choice(("train", "weight", "tool_calls"))] = odd_value(draw)
    return turn
