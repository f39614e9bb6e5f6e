"""Adapters whose records or tensors were changed, through the commands that read them: used or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.soak.fuzz.changes import changed_bytes, changed_tree
from benchmarks.soak.outcomes import Outcome, bad, well
from benchmarks.soak.scenarios import SCENARIOS
from benchmarks.soak.workshop import Workshop

FILES = 2000
COMMANDS = {
    "run": (("inspect-adapter", "run"), ("eval", "run"), ("merge", "run", "-o", "again", "--no-verify")),
    "run/adapter": (("inspect-adapter", "run/adapter"),),
    "hf": (("inspect-adapter", "hf"), SCENARIOS["import"].command),
    "hub": (SCENARIOS["import-hub"].command,),
}
"""Directory of an adapter: what reads it."""


def cases(_shop: Workshop, _sample: bool) -> Iterator[str]:
    """Yield the numbers of the changed files."""
    yield from map(str, range(FILES))


def run(shop: Workshop, case: str) -> Outcome:
    """Change a file of an adapter, and read it."""
    draw = shop.draw(f"adapters/{case}")
    place = shop.start("left")
    directory = draw.choice(sorted(COMMANDS))
    held = place / directory / "adapter" if directory == "run" else place / directory
    path = draw.choice(sorted(file for file in held.iterdir() if file.suffix in (".json", ".safetensors")))
    path.write_bytes(_changed(draw, path))
    shop.log.append(f"{path.relative_to(place)} is changed")
    ended = shop.peft(*draw.choice(COMMANDS[directory]))
    if fault := ended.fault():
        return bad(f"{path.relative_to(place)}: {fault}")
    if ended.code and not any(name in ended.err for name in (path.name, directory)):
        return bad(f"{path.name}: refused without naming it: {ended.err.strip()[:150]}")
    return well("refused" if ended.code else "read")


def _changed(draw: random.Random, path: Path) -> bytes:
    """Return the file with its JSON (of a safetensors file: the header) changed, or its bytes."""
    raw = path.read_bytes()
    if draw.random() < 0.25:
        return changed_bytes(draw, raw)
    if path.suffix == ".json":
        return json.dumps(changed_tree(draw, json.loads(raw))).encode()
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(changed_tree(draw, json.loads(raw[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]
