"""Trackers: their own variables of the environment win over the run directory's name."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from peftcli.training.watch.trackers import Trackers


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the package wandb, which is not installed: what `wandb.init` is called with."""
    calls: list[dict[str, Any]] = []
    module = ModuleType("wandb")
    config = SimpleNamespace(update=lambda *_args, **_kwargs: None)
    run = SimpleNamespace(finish=lambda: None, log=lambda *_args, **_kwargs: None)
    vars(module).update(init=lambda **kwargs: calls.append(kwargs) or run, config=config)
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, {"project": "exp", "name": "exp"}),
        ({"WANDB_PROJECT": "mine"}, {"project": "mine", "name": "exp"}),
        ({"WANDB_PROJECT": "mine", "WANDB_NAME": "first"}, {"project": "mine"}),
    ],
)
def test_wandb_variables_win(started, monkeypatch, tmp_path: Path, variables: dict, given: dict) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Trackers(["wandb"], tmp_path / "exp", {"seed": 1}).running():
        pass
    assert started == [given]
