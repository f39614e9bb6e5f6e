"""The recipe of a conversion as text: what was left to the user stands at its top."""

from __future__ import annotations

from pathlib import Path

from peftcli.recipe.yaml.dump_recipe import dump_block
from peftcli.recipe.yaml.recipe_comments import comment_lines
from peftcli.starting.convert.conversion import Conversion, Outcome

_ORDER = ("model", "task", "data", "method", "training", "distributed", "output_dir", "seed")


def recipe_text(work: Conversion) -> str:
    """Return the recipe with comments: where it comes from, and what needs a decision."""
    counted = (("translated", "translated"), ("dropped", "dropped"), ("decide", "to decide"))
    counts = ", ".join(f"{sum(one.state == state for one in work.outcomes)} {word}" for state, word in counted)
    lines = comment_lines(f"From {Path(work.file).name} of {work.tool}, by `peft convert`: {counts}.")
    for one in work.of("decide"):
        lines += _comment(one)
    body = {key: work.recipe[key] for key in _ORDER if work.recipe.get(key) not in (None, {})}
    return "\n".join(lines) + "\n" + "".join(dump_block(key, value) for key, value in body.items())


def place(one: Outcome) -> str:
    """Return file and line of a key."""
    return f"{one.file}:{one.line}" if one.line is not None else one.file


def _comment(one: Outcome) -> list[str]:
    where = f"line {one.line}" if one.line is not None else "not in it"
    return comment_lines(f"DECIDE ({where}) {one.key}: {one.value}: {one.note}")
