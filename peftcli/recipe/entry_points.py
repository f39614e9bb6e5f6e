"""What other installed packages offer by entry points: methods, metrics, row formats, callbacks.

Entry points are read only for a name that is not ours, or to list what is installed: start-up does not pay for them.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, ParamSpec, TypeVar

from peftcli.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

GUIDE = "see docs/plugins.md"
_REINSTALL = "install the package again, or remove it"


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package: a name, and the module that holds what it names.

    Args:
        kind: what it offers, such as `metric`.
        entry: the entry point.
    """

    kind: str
    entry: EntryPoint

    @property
    def name(self) -> str:
        """The name, as a recipe has it."""
        return self.entry.name

    @property
    def package(self) -> str:
        """The package with its version."""
        found = self.entry.dist
        return f"{found.name} {found.version}" if found is not None else "(unknown)"

    def __str__(self) -> str:
        """Return how messages call it."""
        return (
            f"the plug-in {self.entry.value} of the package {self.package}, which offers the {self.kind} {self.name!r},"
        )

    def wrong(self, reason: str, remedy: str = GUIDE) -> UserError:
        """Return an error that names the package."""
        return UserError(f"{self} {reason}", suggestion=remedy)

    def held(self, attribute: str) -> Any:
        """Import the module and return what it holds under a name, None where it has no such name.

        Raises:
            UserError: the module cannot be imported.
        """
        try:
            return vars(import_module(self.entry.module)).get(attribute)
        except ImportError as error:
            raise self.wrong(f"cannot be imported: {error}", _REINSTALL) from error
        except Exception as error:
            raise self.wrong(f"cannot be imported: {_told(error)}", _REINSTALL) from error

    def guarded(self, function: Callable[P, R], *passes: type[Exception]) -> Callable[P, R]:
        """Return the same function, whose errors are told with the package's name.

        Args:
            passes: errors that mean something to whoever calls it.
        """

        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            try:
                return function(*arguments, **keywords)
            except Exception as error:
                if isinstance(error, (UserError, MemoryError, *passes)):
                    raise
                raise self.wrong(f"failed: {_told(error)}", "mend it, or leave it out of the recipe") from error

        return call


def _told(error: Exception) -> str:
    """Return an error in one line, with the place where it was raised."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def plugins(kind: str) -> list[Plugin]:
    """Return what is installed of a kind, in the order of names; nothing is imported."""
    return list(_read(f"peftcli.{kind}s", kind, tuple(sys.path)))


@lru_cache
def _read(group: str, kind: str, _path: tuple[str, ...]) -> tuple[Plugin, ...]:
    found = [Plugin(kind, entry) for entry in entry_points(group=group)]
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.package)))


def plugin(kind: str, name: str, ours: Collection[str]) -> Plugin | None:
    """Return the plug-in of a name that is not ours, None where no package offers it.

    Raises:
        UserError: several packages do; or a package offers one of our names, which is refused wherever it is seen.
    """
    found = plugins(kind)
    for one in found:
        if one.name in ours:
            raise one.wrong("takes a name of peftcli's own", "remove the package, or give its entry point another name")
    same = [one for one in found if one.name == name]
    if len(same) > 1:
        packages = ", ".join(one.package for one in same)
        raise UserError(f"several packages offer the {kind} {name!r}: {packages}", suggestion="remove all but one")
    return same[0] if same else None


class WithPlugins(Mapping[str, T], Generic[T]):
    """Our own things by name; a name that is not among them is looked up among plug-ins.

    Iterating gives our own ones only, so that an installed package changes no list, no documentation and no choice that
    is made automatically.

    Args:
        ours: by name.
        find: returns a plug-in's, None where there is none.
    """

    def __init__(self, ours: Mapping[str, T], find: Callable[[str], T | None]) -> None:
        self._ours, self._find = ours, find

    def __getitem__(self, name: str) -> T:
        """Return ours, or a plug-in's.

        Raises:
            KeyError: there is neither.
            UserError: a plug-in of this name is broken.
        """
        if name in self._ours:
            return self._ours[name]
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        """Yield our own names."""
        return iter(self._ours)

    def __len__(self) -> int:
        """Return the number of our own."""
        return len(self._ours)
