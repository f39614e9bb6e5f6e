"""A small registry, so that recipes are tested apart from the methods, and a good recipe to spoil."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, SerializeAsAny, model_validator

from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.recipe.method_params import MethodParams, TargetedParams

GOOD = """\
model:
  name_or_path: org/model
task: causal_lm
data:
  path: train.jsonl
method:
  name: low_rank
  r: 8
training:
  learning_rate: 1e-4
seed: 7
"""


class LowRank(TargetedParams):
    """A method with bounds."""

    name: Literal["low_rank"] = "low_rank"
    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[int | float, Field(gt=0)]] = Field(default_factory=dict)


class Budget(MethodParams):
    """A method with a condition over two keys, for one task, not on a quantised base."""

    name: Literal["budget"] = "budget"
    init_r: int = 12
    target_r: int = 8

    @model_validator(mode="after")
    def _shrinks(self) -> Budget:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r is {self.target_r}, above init_r = {self.init_r}")
        return self


class Several(MethodParams):
    """A composition: a list of any methods, and one of a given kind."""

    name: Literal["several"] = "several"
    parts: list[SerializeAsAny[MethodParams]] = Field(min_length=1)
    main: SerializeAsAny[MethodParams] | None = None
    low_rank: LowRank | None = None


@dataclass(frozen=True)
class Facts:
    """What `recipe` asks of a method's record."""

    summary: str = "A method of the tests."
    tasks: frozenset[str] = frozenset()
    quantised_base: bool = True
    forces_4bit: bool = False
    artifact: Literal["adapter", "model"] = "adapter"


class NoChecks:
    """Accepts every recipe."""

    def check_config(self, config: Mapping[str, Any], params: Any) -> list[str]:
        return []

    def check_run(self, params: Any, total_steps: int) -> list[str]:
        return []


class SmallRegistry:
    """Three methods, in the shape of the real registry."""

    models: ClassVar[dict[str, type[MethodParams]]] = {"low_rank": LowRank, "budget": Budget, "several": Several}
    facts: ClassVar[dict[str, Facts]] = {
        "budget": Facts(tasks=frozenset({"sequence_classification"}), quantised_base=False)
    }

    def names(self) -> list[str]:
        return list(self.models)

    def find(self, name: str) -> NoChecks | None:
        return NoChecks() if name in self.models else None

    def info(self, name: str) -> Facts:
        return self.facts.get(name, Facts())

    def params_model(self, name: str) -> type[MethodParams] | None:
        return self.models.get(name)


SMALL = replace(NAMES, methods=SmallRegistry())
"""The names of recipes, with the three methods."""

Load = Callable[..., LoadedRecipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that writes a recipe's text to r.yaml and loads it."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *overrides: str, environ: dict[str, str] | None = None, **options: Any) -> LoadedRecipe:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return load_recipe("r.yaml", overrides, SMALL, environ=environ or {}, **options)

    return run


@pytest.fixture
def problems(load: Load) -> Callable[..., list[Problem]]:
    """Return a function that loads a wrong recipe and gives its problems."""

    def run(text: str, *overrides: str, **options: Any) -> list[Problem]:
        with pytest.raises(UserError, match=r".") as caught:
            load(text, *overrides, **options)
        return list(caught.value.problems)

    return run
