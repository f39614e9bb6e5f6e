"""One of two processes of several runs: `python -m tests.matrix.two_processes OUTPUT RECIPE ...`, under a launcher's
environment. One process group serves all runs, so that torch is imported twice and not thirty times."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from tests.matrix.runs import Seen, watched_training


def main(output: str, *recipes: str) -> None:
    """Train each recipe, and write what this process saw."""
    found: dict[str, Any] = {}
    for recipe in recipes:
        seen = watched_training(load_recipe(recipe, [], NAMES))
        found[Path(recipe).stem] = as_json(seen)
    Path(f"{output}-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


def as_json(seen: Seen) -> dict[str, Any]:
    """Return what was seen as plain data."""
    seen.session = None
    return {key: sorted(value) if isinstance(value, set) else value for key, value in asdict(seen).items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
