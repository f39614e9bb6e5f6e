"""Read what a sweep searches: from `--grid` and `--search`, or from a file, with the place of each key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.recipe.yaml.recipe_text import read_recipe_text
from peftcli.recipe.yaml.scalars import kind, read_scalar, show
from peftcli.recipe.yaml.yaml_errors import YamlProblem
from peftcli.recipe.yaml.yaml_lines import Document, Key, parse_yaml
from peftcli.studies.sweep.space.search_domain import FORMS, Choices, Domain, WrongDomain, choices, read_domain
from peftcli.studies.sweep.space.search_space import Dimension, SearchSpace, same
from peftcli.suggestions import did_you_mean, nearest

SETTINGS = ("trials", "sampler", "pruner", "seeds", "metric", "winners")
"""Options of the command that a search file can hold; an option that is typed wins."""


@dataclass
class Search:
    """What is searched, and the settings that a file gives.

    Args:
        space: the keys.
        settings: by the option's name, without dashes.
        lines: of each setting in the file.
    """

    space: SearchSpace
    settings: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def search_of_options(option: str, texts: Sequence[str]) -> Search:
    """Return the space of `--grid key=values` or `--search key=values`, in the order typed.

    Raises:
        UserError: every text that cannot be read, and every key that is given twice.
    """
    problems: list[Problem] = []
    found: list[Dimension] = []
    for text in texts:
        where = f"{option} {text}"
        key, equals, written = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            example = f"{option} {key if all(key.split('.')) else 'method.r'}=4,8,16"
            problems.append(Problem("expected KEY=VALUES", file=where, suggestion=f"write it as {example}"))
            continue
        try:
            found.append(Dimension(key, read_domain(written), written.strip(), where))
        except WrongDomain as wrong:
            problems.append(Problem(f"{key}: {wrong.message}", file=where, suggestion=wrong.suggestion))
    problems += _twice(found)
    if problems:
        raise UserError(problems)
    return Search(SearchSpace(tuple(found)))


def search_of_file(path: Path) -> Search:
    """Return the space and the settings of a search file.

    Below `search:` each key of the recipe has a list, a text as `--search` takes it, or, for a key on which others
    depend, a mapping of its values to the keys that are searched under each.

    Raises:
        UserError: everything that is wrong with the file, with its lines.
    """
    file = str(path)
    try:
        document = parse_yaml(read_recipe_text(path), {})
    except YamlProblem as error:
        raise UserError(Problem(error.message, file=file, line=error.line, suggestion=error.suggestion)) from error
    if not isinstance(document.data, dict) or not isinstance(document.data.get("search"), dict):
        shape = "search:\n      method.r: [4, 8, 16]\n      training.learning_rate: log:1e-5..1e-2"
        raise UserError(Problem("there is no mapping `search:`", file=file, line=1, suggestion=shape))
    reader = _FileReader(file, document)
    reader.problems += [
        Problem(one.message, file, one.line, ".".join(map(str, one.key)), one.suggestion)
        for one in document.remarks
        if not one.unset
    ]
    reader.read(document.data["search"], ("search",), ())
    settings = reader.settings()
    reader.problems += _twice(reader.found)
    if not reader.found and not reader.problems:
        reader.problems.append(Problem("`search:` is empty", file=file, line=1, suggestion="name a key of the recipe"))
    if reader.problems:
        raise UserError(sorted(reader.problems, key=lambda one: one.line or 0))
    lines = {name: document.lines[(name,)] for name in settings}
    return Search(SearchSpace(tuple(reader.found)), settings, lines)


class _FileReader:
    """Collects the dimensions and the problems of one search file."""

    def __init__(self, file: str, document: Document) -> None:
        self.file, self.document = file, document
        self.found: list[Dimension] = []
        self.problems: list[Problem] = []

    def settings(self) -> dict[str, Any]:
        """Return the settings beside `search:`, and note keys that are none."""
        found = {}
        for name, value in self.document.data.items():
            if name in SETTINGS:
                found[name] = value
            elif name != "search":
                hint = did_you_mean(nearest(name, ["search", *SETTINGS]), f"beside search: {', '.join(SETTINGS)}")
                self.add((name,), "there is no such key", hint)
        return found

    def read(self, block: dict[str, Any], place: Key, under: tuple[tuple[str, Any], ...]) -> None:
        """Read the keys of one mapping, and those that depend on their values."""
        for key, value in block.items():
            here = (*place, key)
            if not all(key.split(".")):
                self.add(here, f"{key!r} is no key of a recipe", "write a dotted path: method.r")
                continue
            try:
                domain, text = _domain_of(value)
            except WrongDomain as wrong:
                self.add(here, wrong.message, wrong.suggestion)
                continue
            self.found.append(Dimension(key, domain, text, self.file, self.document.lines.get(here), under))
            if isinstance(value, dict):
                self.nested(key, value, here, under)

    def nested(self, key: str, values: dict[str, Any], place: Key, under: tuple[tuple[str, Any], ...]) -> None:
        """Read the keys below each value of `key`; null and {} mean that nothing depends on it."""
        for name, inner in values.items():
            if isinstance(inner, dict):
                self.read(inner, (*place, name), (*under, (key, read_scalar(name))))
            elif inner is not None:
                remedy = f"write the keys that are searched under {key} = {name}, or nothing"
                self.add((*place, name), f"{show(inner)} is no mapping of keys", remedy)

    def add(self, key: Key, message: str, suggestion: str | None) -> None:
        """Note a problem at a key of the file."""
        dotted = " -> ".join(map(str, key[1:] if key[0] == "search" and len(key) > 1 else key))
        self.problems.append(Problem(message, self.file, self.document.lines.get(key), dotted, suggestion))


def _domain_of(value: Any) -> tuple[Domain, str]:
    """Return the values that one entry of a file means, and how they are shown.

    Raises:
        WrongDomain: the entry means nothing.
    """
    if isinstance(value, dict):
        return choices(read_scalar(name) for name in value), ", ".join(value)
    if isinstance(value, list):
        return choices(value), ", ".join(show(one) for one in value)
    if isinstance(value, str):
        return read_domain(value), value
    if value is None or isinstance(value, bool):
        raise WrongDomain(f"{kind(value)} names no values", f"write a list, or {FORMS}")
    return Choices((value,)), show(value)


def _twice(found: Sequence[Dimension]) -> list[Problem]:
    """Return a problem for each key that two dimensions give at once; under different values of a key both may."""
    problems = []
    for place, one in enumerate(found):
        if any(other.key == one.key and not _exclude_each_other(one, other) for other in found[:place]):
            problems.append(Problem("is searched twice", one.file, one.line, one.key, "keep one of the two"))
    return problems


def _exclude_each_other(one: Dimension, other: Dimension) -> bool:
    values = dict(other.under)
    return any(key in values and not same(value, values[key]) for key, value in one.under)
