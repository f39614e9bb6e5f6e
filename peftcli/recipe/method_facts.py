"""What `recipe` asks of the method registry, which the command line hands in: `recipe` knows no method itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol

from peftcli.recipe.method_params import MethodParams


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
    def artifact(self) -> Literal["adapter", "model"]:
        """What a run leaves: `model` where the base itself is trained."""

    @property
    def summary(self) -> str:
        """One sentence."""


class MethodChecks(Protocol):
    """What a method says of a recipe before anything is loaded; each reason starts with a hyper-parameter's name."""

    def check_config(self, config: Mapping[str, Any], params: Any) -> list[str]:
        """Return why a model with this config.json cannot carry these hyper-parameters."""

    def check_run(self, params: Any, total_steps: int) -> list[str]:
        """Return why these hyper-parameters do not fit a run of so many optimizer steps."""


class Registry(Protocol):
    """From a method's name to its checks, its record and its typed hyper-parameters."""

    def names(self) -> list[str]:
        """Return the built-in methods."""

    def find(self, name: str) -> MethodChecks | None:
        """Return a method, or None."""

    def info(self, name: str) -> MethodFacts:
        """Return the record of a method that exists."""

    def params_model(self, name: str) -> type[MethodParams] | None:
        """Return the hyper-parameters' model of a method, or None."""
