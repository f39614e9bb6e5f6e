"""The rules of `peft recommend`: `rules.yaml` as typed records, and which of them hold for a situation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from peftcli.analysis.advice.situation import Situation
from peftcli.tasks.task_info import ModelKind

Need = Literal["4bit", "checkpointing"]
Bounds = tuple[float | None, float | None]

COMPUTED = "computed: "
"""Before the name of a function in `computed_values.py`, in place of a value."""


class Scope(BaseModel):
    """What must hold for a rule to be used; what is None or empty does not matter.

    Args:
        tasks: names of tasks.
        numbers: least and most numbers of the base.
        rows: least and most training rows, which must be known.
        tokens_known: whether the tokens to learn must have been counted.
        needs: what the memory asks for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[ModelKind, ...] = ()
    tasks: tuple[str, ...] = ()
    numbers: Bounds = (None, None)
    rows: Bounds | None = None
    tokens_known: bool = False
    needs: Need | None = None

    def holds(self, now: Situation) -> bool:
        """Return whether the situation lies in this scope."""
        return (
            (not self.kinds or now.kind in self.kinds)
            and (not self.tasks or now.task in self.tasks)
            and _within(now.numbers, self.numbers)
            and (self.rows is None or (now.rows is not None and _within(now.rows, self.rows)))
            and (not self.tokens_known or now.supervised_tokens is not None)
            and (self.needs is None or self.needs in now.needs)
        )


class Rule(BaseModel):
    """One rule; `rules.yaml` says what each field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    key: str = Field(min_length=1)
    value: bool | int | str | list[str]
    when: Scope
    reason: str = Field(min_length=1)
    scope: str = Field(min_length=1)
    limit: str = Field(min_length=1)
    source: str = Field(min_length=1)
    date: str = Field(pattern=r"^20\d\d-\d\d$")
    against: str = Field(min_length=1)


@cache
def rules() -> tuple[Rule, ...]:
    """Return all rules, in the order of the file."""
    found = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))
    return tuple(Rule.model_validate(entry) for entry in found)


def rules_that_hold(now: Situation) -> Iterator[Rule]:
    """Yield for each key the first rule whose scope holds."""
    done: set[str] = set()
    for rule in rules():
        if rule.key not in done and rule.when.holds(now):
            done.add(rule.key)
            yield rule


def _within(value: float, bounds: Bounds) -> bool:
    least, most = bounds
    return (least is None or value >= least) and (most is None or value < most)
