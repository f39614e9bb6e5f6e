"""The shipped recipes: where they are, and what their first lines say.

A recipe begins with comments in a fixed form, each a name, a colon and a text, which goes on in comment lines that are
indented: Purpose, Memory, Time, Source, and for a published setting Paper (its figure) and Measured (ours).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.recipe.yaml.yaml_lines import parse_yaml
from peftcli.suggestions import did_you_mean, nearest

REQUIRED = ("Purpose", "Memory", "Time", "Source")
PUBLISHED = ("Paper", "Measured")
"""What a recipe with a paper's settings says besides: both or neither."""

_FACT = re.compile(rf"# ({'|'.join([*REQUIRED, *PUBLISHED])}): (.+)")
_MORE = re.compile(r"#   +(.+)")


@dataclass(frozen=True)
class ShippedRecipe:
    """One shipped recipe.

    Args:
        name: of its file, without the suffix.
        task, model, method: as the recipe has them.
        memory: of one device, in short, such as `24 GB`.
        purpose, memory_how, time, source: what its first lines say.
        paper, measured: the paper's figure, and this project's; None where the settings are no paper's.
        file: where it is.
    """

    name: str
    task: str
    model: str
    method: str
    memory: str
    purpose: str
    memory_how: str
    time: str
    source: str
    paper: str | None
    measured: str | None
    file: Path

    def text(self) -> str:
        """Return the recipe as it is shipped."""
        return self.file.read_text(encoding="utf-8")

    def as_dict(self) -> dict[str, Any]:
        """Return an object of `recipes list --json`."""
        return asdict(self) | {"file": str(self.file)}


def recipe_folder() -> Path:
    """Return where the recipes are: beside this file in an installed wheel (see setup.py), else in the repository."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> list[ShippedRecipe]:
    """Return all shipped recipes, those of one task together, by name.

    Raises:
        UserError: the package was installed without them.
    """
    files = sorted(recipe_folder().glob("*.yaml"))
    if not files:
        remedy = "install peftcli again; the repository has them in recipes/"
        raise UserError("no recipe is installed with this package", suggestion=remedy)
    found = [read_shipped(file) for file in files]
    order = tuple(NAMES.tasks)
    return sorted(found, key=lambda one: (order.index(one.task) if one.task in order else len(order), one.name))


def shipped_recipe(name: str) -> ShippedRecipe:
    """Return one recipe by its name; the suffix may be there.

    Raises:
        UserError: there is no such recipe; names the nearest ones.
    """
    plain = name.removesuffix(".yaml")
    every = shipped_recipes()
    for one in every:
        if one.name == plain:
            return one
    near = nearest(plain, [one.name for one in every], most=3, cutoff=0.5)
    raise UserError(f"there is no recipe {name!r}", suggestion=did_you_mean(near, "`peft recipes list` shows them all"))


def read_shipped(file: Path) -> ShippedRecipe:
    """Return a recipe with what its first lines say.

    Raises:
        ValueError: a line of the fixed form is missing.
    """
    text = file.read_text(encoding="utf-8")
    facts = read_header(text.splitlines())
    missing = [name for name in REQUIRED if name not in facts]
    if missing or len([name for name in PUBLISHED if name in facts]) == 1:
        raise ValueError(f"{file}: the first lines lack {', '.join(missing or PUBLISHED)}")
    data = parse_yaml(text, {}).data
    return ShippedRecipe(
        name=file.stem,
        task=data["task"],
        model=data["model"]["name_or_path"],
        method=data["method"]["name"],
        memory=facts["Memory"].partition(" (")[0],
        purpose=facts["Purpose"],
        memory_how=facts["Memory"],
        time=facts["Time"],
        source=facts["Source"],
        paper=facts.get("Paper"),
        measured=facts.get("Measured"),
        file=file,
    )


def read_header(lines: Iterable[str]) -> dict[str, str]:
    """Return the facts of a recipe's first comment lines by their names."""
    facts: dict[str, str] = {}
    last: str | None = None
    for line in lines:
        if not line.startswith("#"):
            break
        if found := _FACT.fullmatch(line):
            last = found.group(1)
            facts[last] = found.group(2).strip()
        elif last is not None and (more := _MORE.fullmatch(line)):
            facts[last] += f" {more.group(1).strip()}"
        else:
            last = None
    return facts
