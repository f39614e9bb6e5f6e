"""Problems found at different places, reported together, each with the recipe's file and line."""

from __future__ import annotations

from collections.abc import Iterable

from peftcli.errors import Problem, UserError
from peftcli.recipe.load_recipe import LoadedRecipe


class collecting:  # reads as a statement: `with collecting(problems):`
    """A context that puts the problems of a `UserError` into a list instead of raising it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.problems.extend(error.problems)
            return True
        return False


def located(loaded: LoadedRecipe, problems: Iterable[Problem]) -> list[Problem]:
    """Return problems, each once, with the recipe's file and line where they name a key and no place."""
    return [
        loaded.problem(p.key, p.message, p.suggestion) if p.key and p.file is None else p
        for p in dict.fromkeys(problems)
    ]
