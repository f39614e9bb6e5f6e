"""What `recipe` asks of the method registry, which the command line hands in: `recipe` knows no method itself."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Protocol

from peftcli.recipe.params import MethodParams


class MethodFacts(Protocol):
    """The part of a method's record that recipes are checked against."""

    @property
    def tasks(self) -> Collection[str]:
        """The tasks it serves; empty for all."""

    @property
    def quantised_base(self) -> bool:
        """Whether it trains on a 4- or 8-bit base."""

    @property
    def forces_4bit(self) -> bool:
        """Whether it implies a 4-bit base."""

    @property
    def summary(self) -> str:
        """One sentence."""


class Registry(Protocol):
    """From a method's name to its module, its record and its typed hyper-parameters."""

    def names(self) -> list[str]:
        """Return the built-in methods."""

    def find(self, name: str) -> ModuleType | None:
        """Return a method's module, or None."""

    def info(self, name: str) -> MethodFacts:
        """Return the record of a method that exists."""

    def params_model(self, name: str) -> type[MethodParams] | None:
        """Return the hyper-parameters' model of a method, or None."""
