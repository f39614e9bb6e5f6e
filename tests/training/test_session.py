"""A session and what it is made of are built once: frozen, typed, and nothing is set on them from outside."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest

from peftcli.assembly.outline import Outline
from peftcli.assembly.precision import Precision
from peftcli.data.rows.collation import Collator
from peftcli.inference.evaluator import Evaluation, Evaluator
from peftcli.inference.opened_run import OpenedRun
from peftcli.training.before_weights import BeforeWeights
from peftcli.training.computing import Computing
from peftcli.training.session import Session
from peftcli.training.speed.fast_paths import AllowedPaths
from peftcli.training.step_plan import StepPlan

PACKAGE = Path(__file__).resolve().parents[2] / "peftcli"
FROZEN = (AllowedPaths, BeforeWeights, Collator, Computing, Evaluation, Evaluator, OpenedRun, Outline, Precision,
          Session, StepPlan)  # fmt: skip
ROOMS = ("assembly", "cli", "data/rows", "distributed", "inference", "record", "training")
MOVES = {
    "error.__traceback__",  # its frames hold the tensors of the step that did not fit
    "parameter.grad",  # a process without a gradient counts as zero
    "self.model.get_parameter(name).data",  # `OpenedRun.close` puts the base's own values back
    "command.cls",  # typer takes the class of commands one by one
    "operation.own", "parent.own", "starter.own",  # times that are summed up while a table is made
}  # fmt: skip
"""Attributes of objects made elsewhere that are set, besides those of `TrainState`."""


@pytest.mark.parametrize("kind", FROZEN, ids=lambda kind: kind.__name__)
def test_frozen_and_typed(kind: type) -> None:
    assert is_dataclass(kind)
    instance = object.__new__(kind)
    with pytest.raises(FrozenInstanceError):
        setattr(instance, fields(kind)[0].name, None)
    if kind is not Evaluation:  # metrics are plain data
        assert [field.name for field in fields(kind) if "Any" in str(field.type)] == []


def test_nothing_is_set_from_outside() -> None:
    set_outside = {
        ast.unparse(place)
        for room in ROOMS
        for path in (PACKAGE / room).rglob("*.py")
        for place in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(place, ast.Attribute) and isinstance(place.ctx, ast.Store) and ast.unparse(place.value) != "self"
    }
    of_state = {
        place
        for place in set_outside
        if place.rpartition(".")[0] in ("state", "session.state", "self.session.state", "self._session.state")
    }
    assert len(of_state) > 10
    assert set_outside - of_state == MOVES
