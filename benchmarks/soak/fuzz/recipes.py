"""Random recipes through `peft validate`, a few of them through `peft train`: an answer, whatever they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import yaml

from benchmarks.soak import material
from benchmarks.soak.fuzz.changes import changed_bytes, changed_tree
from benchmarks.soak.outcomes import Outcome, bad, well
from benchmarks.soak.workshop import Workshop
from tests.recipe.pieces import TREES, WELL_TYPED

RECIPES = 5000
TRAINED = 0.1
"""Share of the recipes that are trained for a step."""
FILE = "fuzzed.yaml"


def cases(_shop: Workshop, _sample: bool) -> Iterator[str]:
    """Yield the numbers of the recipes."""
    yield from map(str, range(RECIPES))


def run(shop: Workshop, case: str) -> Outcome:
    """Validate a random recipe, or train a step of it."""
    draw = shop.draw(f"recipes/{case}")
    place = shop.start("fresh")
    own = draw.random() < 0.5
    tree = copy.deepcopy(draw.choice([tree for _, tree in material.recipes()] if own else TREES))
    overrides: list[str] = []
    kind = draw.random()
    if kind < 0.6:
        tree = changed_tree(draw, tree)
    text = _text(tree)
    if kind > 0.8:
        overrides = draw.sample(WELL_TYPED, draw.randint(1, 4))
    elif kind > 0.6:
        text = changed_bytes(draw, text)
    (place / FILE).write_bytes(text)
    if own and draw.random() < TRAINED:
        command = ("train", FILE, *overrides, "training.max_steps=1", "output_dir=run")
    else:
        command = ("validate", FILE, *overrides)
    ended = shop.peft(*command)
    if fault := ended.fault():
        return bad(fault)
    return well("refused" if ended.code else "valid")


def _text(tree: object) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")
