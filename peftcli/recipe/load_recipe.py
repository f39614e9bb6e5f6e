"""`load_recipe`: a YAML file and overrides in, a checked `Recipe` with line numbers out, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.recipe.aliases.renamed_keys import Change, upgrade_tree_
from peftcli.recipe.checks.check_recipe import check_recipe
from peftcli.recipe.data_to_recipe import Builder
from peftcli.recipe.pydantic_messages import Finding
from peftcli.recipe.recipe_overrides import apply_overrides
from peftcli.recipe.run_paths import lies_in_run
from peftcli.recipe.schema import Recipe
from peftcli.recipe.vocabulary import Names
from peftcli.recipe.yaml.recipe_text import read_recipe_text
from peftcli.recipe.yaml.scalars import kind
from peftcli.recipe.yaml.value_tree import Tree, dotted, has_part
from peftcli.recipe.yaml.yaml_errors import YamlProblem
from peftcli.recipe.yaml.yaml_lines import Document, Key, Remark, parse_yaml


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and where each of its values was written.

    Args:
        recipe: every default filled in, `output_dir` included.
        path: the file, as the user named it.
        tree: the data as it was written, with the line of each value.
        wrong: dotted keys that are wrong and left out of `recipe`; empty except in a `SurroundingsCheck`.
        unasked_code: the file is a run's and sets `model.trust_remote_code`, which therefore is off in `recipe`: only
            the person who types the command says whether code runs.
    """

    recipe: Recipe
    path: str
    tree: Tree
    wrong: frozenset[str] = frozenset()
    unasked_code: bool = False

    @property
    def lines(self) -> dict[str, int]:
        """The 1-based line of each dotted key in the file."""
        return {".".join(map(str, key)): line for key, line in self.tree.lines.items()}

    def where(self, key: str) -> tuple[str, int | None]:
        """Return (file, line) of a dotted key or of the block around it; (`override a.b=1`, None) for an override."""
        return self.tree.where(self._split(key))

    def problem(self, key: str, message: str, suggestion: str | None = None) -> Problem:
        """Return a problem of a dotted key, with the place where the key is written."""
        return self.tree.problem(self._split(key), message, suggestion)

    def with_training(self, **values: Any) -> LoadedRecipe:
        """Return the same with values of the training block that were decided since."""
        training = self.recipe.training.model_copy(update=values)
        return replace(self, recipe=self.recipe.model_copy(update={"training": training}))

    def _split(self, key: str) -> Key:
        """Return the path of a dotted key; a part of digits is a list's element where the data has a list there.

        Keys of a mapping may hold dots: the longest one that is there is taken.
        """
        path: Key = ()
        parts = key.split(".") if key else []
        while parts:
            here = self.tree.value(path)
            longest = [end for end in range(len(parts), 0, -1) if has_part(here, ".".join(parts[:end]))]
            end = longest[0] if longest else 1
            part = ".".join(parts[:end])
            path = (*path, int(part) if isinstance(here, list) and part.isdigit() else part)
            parts = parts[end:]
        return path


SurroundingsCheck = Callable[[LoadedRecipe, Names], Iterable[Problem]]
"""Checks the files that a recipe names. It also gets recipes with mistakes, without the wrong keys."""


def load_recipe(
    path: str | Path,
    overrides: Sequence[str],
    names: Names,
    *,
    need_data: bool = True,
    environ: Mapping[str, str] | None = None,
    surroundings: SurroundingsCheck | None = None,
    upgrades: Sequence[Change] = (),
) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `a.b=value` changes, in order.
        names: what a recipe can name.
        need_data: whether the `data` block is required; `count-params` needs none.
        environ: variables for `${NAME}`; the process's own by default.
        surroundings: a further check. It runs on a recipe with mistakes, too, so that all problems are shown at once.
        upgrades: renamed keys that are accepted under their old names; for stored recipes (`load_stored_recipe`).

    Raises:
        UserError: every problem found, each with file, line, key and remedy, in the order of the file.
    """
    variables = os.environ if environ is None else environ
    file = str(path)
    document = _parse(file, read_recipe_text(Path(path)), variables)
    tree = Tree.from_document(file, document)
    remarks = [*document.remarks, *upgrade_tree_(tree, upgrades)]
    if upgrades:  # a run without its training data can be used: whoever reads them says that they are not there
        remarks = [one for one in remarks if not (one.unset and one.key[0] == "data" and one.key[-1] in _PLACES)]
    loaded = _checked(tree, remarks, overrides, names, need_data, variables, surroundings)
    return without_unasked_code(loaded) if lies_in_run(Path(path)) else loaded


_PLACES = ("path", "cache_dir")
"""Keys of the data block whose environment variables may be unset later on."""


TRUST_REMOTE_CODE = "model.trust_remote_code=true"
"""The override that the option --trust-remote-code stands for."""


def without_unasked_code(loaded: LoadedRecipe) -> LoadedRecipe:
    """Return a run's recipe with `model.trust_remote_code` off, unless an override set it.

    Whoever wrote the file is not the person who types the command.
    """
    typed = {("model",), ("model", "trust_remote_code")} & loaded.tree.overridden.keys()
    if typed or not loaded.recipe.model.trust_remote_code:
        return loaded
    model = loaded.recipe.model.model_copy(update={"trust_remote_code": False})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"model": model}), unasked_code=True)


def recipe_from_overrides(source: str, overrides: Sequence[str], names: Names) -> LoadedRecipe:
    """Build a recipe from `a.b=value` changes, without a file and without data.

    Args:
        source: what the user wrote; problems name it.

    Raises:
        UserError: as `load_recipe`.
    """
    return _checked(Tree(source, {}, {}), (), overrides, names, False, {})


def recipe_from_data(source: str, data: dict[str, Any], names: Names) -> LoadedRecipe:
    """Check a recipe that a program made; the files that it names are not looked at.

    Args:
        source: what it was made from; problems name it.
        data: the recipe's mapping.

    Raises:
        UserError: every problem found.
    """
    return _checked(Tree(source, data, {}), (), (), names, True, {})


def _checked(
    tree: Tree,
    remarks: Iterable[Remark],
    overrides: Sequence[str],
    names: Names,
    need_data: bool,
    environ: Mapping[str, str],
    surroundings: SurroundingsCheck | None = None,
) -> LoadedRecipe:
    problems = apply_overrides(tree, overrides, environ, names)
    builder = Builder(names, tree.data)
    recipe = builder.build()
    found = builder.found
    if need_data and tree.data.get("data") is None:
        found.append(_NO_DATA)
    if recipe is not None:
        found += check_recipe(recipe, names, [finding.key for finding in found])
    problems += [
        Problem(remark.message, tree.file, remark.line, dotted(remark.key), remark.suggestion)
        for remark in remarks
        if remark.key not in tree.overridden
    ]
    problems += [tree.problem(finding.key, finding.message, finding.suggestion) for finding in found]
    readable = builder.remains() if recipe is None else recipe
    if surroundings is not None and readable is not None:
        wrong = frozenset(problem.key for problem in problems if problem.key) | builder.replaced
        remaining = LoadedRecipe(_with_output_dir(readable, tree.file), tree.file, tree, wrong)
        problems += [problem for problem in surroundings(remaining, names) if not _within(problem.key, wrong)]
    if problems or recipe is None:
        raise UserError(_in_order(problems))
    return LoadedRecipe(_with_output_dir(recipe, tree.file), tree.file, tree)


def _within(key: str | None, wrong: Iterable[str]) -> bool:
    """Return whether a dotted key is one of `wrong` or lies in a block that is."""
    return key is not None and any(f"{key}.".startswith(f"{one}.") for one in wrong)


def _parse(file: str, text: str, environ: Mapping[str, str]) -> Document:
    try:
        document = parse_yaml(text, environ)
    except YamlProblem as error:
        raise UserError(Problem(error.message, file=file, line=error.line, suggestion=error.suggestion)) from error
    if document.data is None:
        raise UserError(Problem("the recipe is empty", file=file, suggestion=_SHAPE))
    if not isinstance(document.data, dict):
        received = kind(document.data)
        raise UserError(
            Problem(f"the top level is {received}; expected a mapping", file=file, line=1, suggestion=_SHAPE)
        )
    return document


_SHAPE = "a recipe has the keys model, task, data, method, and optionally training, output_dir, seed"


_NO_DATA = Finding(("data",), "data is missing", "write `data:` with a `path:` below it")


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems in the order of their lines, without duplicates; those of overrides come last."""
    unique = list(dict.fromkeys(problems))
    return sorted(unique, key=lambda problem: (problem.line is None, problem.line or 0))


def _with_output_dir(recipe: Recipe, file: str) -> Recipe:
    """Return the recipe with the directory of its run: by default runs/ and the file's name; `~` is the home."""
    given = f"runs/{Path(file).stem}" if recipe.output_dir is None else recipe.output_dir
    with suppress(RuntimeError):  # the home of a user who does not exist: refused by a check
        given = str(Path(given).expanduser()) if given.startswith("~") else given
    return recipe.model_copy(update={"output_dir": given})
