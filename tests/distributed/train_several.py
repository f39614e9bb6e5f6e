"""One of several processes that train recipes in turn: `python -m tests.distributed.train_several RECIPE ...`, under a
launcher's environment. One process group serves all runs, so that torch is imported once a process.

A run that fails is told in `FILE.error`, beside the recipe; the others go on.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.training.run import train


def main(*recipes: str) -> None:
    """Train each recipe."""
    for recipe in recipes:
        try:
            train(load_recipe(recipe, [], NAMES))
        except Exception:  # every process fails alike, or the launch runs into its time limit
            Path(f"{recipe}.error{os.environ['RANK']}").write_text(traceback.format_exc(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
