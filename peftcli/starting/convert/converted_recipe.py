"""The recipe of a conversion as text: what was left to the user stands at its top."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli.recipe.yaml.dump_recipe import dump_plain
from peftcli.starting.convert.conversion import Conversion, Outcome

_ORDER = ("model", "task", "data", "method", "training", "distributed", "output_dir", "seed")
_WIDTH = 100


def recipe_text(work: Conversion) -> str:
    """Return the recipe with comments: where it comes from, and what needs a decision."""
    counted = (("translated", "translated"), ("dropped", "dropped"), ("decide", "to decide"))
    counts = ", ".join(f"{sum(one.state == state for one in work.outcomes)} {word}" for state, word in counted)
    lines = [f"# From {Path(work.file).name} of {work.tool}, by `peft convert`: {counts}."]
    for one in work.of("decide"):
        lines += _comment(one)
    body = {key: work.recipe[key] for key in _ORDER if work.recipe.get(key) not in (None, {})}
    return "\n".join(lines) + "\n" + "".join(_block(key, value) for key, value in body.items())


def _block(key: str, value: Any) -> str:
    """Return a block with a line a key."""
    if not isinstance(value, dict):
        return dump_plain({key: value})
    return f"{key}:\n" + "".join(textwrap.indent(dump_plain({name: one}), "  ") for name, one in value.items())


def place(one: Outcome) -> str:
    """Return file and line of a key."""
    return f"{one.file}:{one.line}" if one.line is not None else one.file


def _comment(one: Outcome) -> Iterator[str]:
    where = f"line {one.line}" if one.line is not None else "not in it"
    text = f"DECIDE ({where}) {one.key}: {one.value}: {one.note}"
    for number, part in enumerate(textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)):
        yield f"# {'  ' if number else ''}{part}"
