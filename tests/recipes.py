"""Fixtures for runs through the library: tiny models, rows, recipes loaded from disk, a reporter that remembers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.record.callback import StepRecord
from peftcli.record.run_summary import Summary

WORDS = ["cat", "dog", "mat", "house", "film", "story", "green", "red", "blue", "bad", "good", "very"]


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        self.steps: list[StepRecord] = []
        self.evaluations: list[dict[str, Any]] = []
        self.summary: Summary | None = None

    def preparing(self, rows: int) -> None: ...

    def header(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluation(self, metrics: dict[str, Any]) -> None:
        self.evaluations.append(metrics)

    def finished(self, summary: Summary) -> None:
        self.summary = summary

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.steps if record.loss is not None]


class CtrlC(Recorder):
    """Presses Ctrl-C while a step is recorded, or its evaluation: a real SIGINT to this process."""

    def __init__(self, at: int, *, evaluated: bool = False) -> None:
        super().__init__()
        self.at, self.evaluated = at, evaluated

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == self.at and not self.evaluated:
            os.kill(os.getpid(), signal.SIGINT)

    def evaluation(self, metrics: dict[str, Any]) -> None:
        super().evaluation(metrics)
        if metrics["step"] == self.at and self.evaluated:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_rows(count: int) -> list[dict[str, str]]:
    """Prompts of different lengths, each with an answer of its own."""
    return [
        {
            "prompt": f"the {WORDS[i % 12]} {WORDS[(i * 5 + i // 12) % 12]} " + "and " * (i % 5),
            "completion": f"{WORDS[(i * 7) % 12]} on {WORDS[(i + 3) % 12]}",
        }
        for i in range(count)
    ]


def class_rows(count: int, labels: int = 3) -> list[dict[str, str]]:
    """Texts whose class is told by one word."""
    return [
        {"text": f"the {WORDS[i % labels]} {'was ' * (i % 4)}{WORDS[(i * 5) % 12]}", "label": f"class{i % labels}"}
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Callable[[str, str], Path]:
    """Return the directory of a tiny model, written on first use."""
    from tests.tiny import save_tiny

    home = tmp_path_factory.mktemp("models")

    def directory(family: str, task: str = "causal_lm", **changes: Any) -> Path:
        kind = "base" if "classification" in task else task
        path = home / "-".join([family, kind, *(f"{k}={v}" for k, v in changes.items())])
        return path if path.exists() else save_tiny(path, family, kind, **changes)

    return directory


def recipes_in(folder: Path, models: Callable[..., Path]) -> Callable[..., LoadedRecipe]:
    """Return what writes a recipe into `folder` and loads it; dotted keys are given with two underscores."""

    def make(family: str = "llama", task: str = "causal_lm", rows: Any = None, /, **changes: Any) -> LoadedRecipe:
        if rows is None:
            rows = chat_rows(16) if task == "causal_lm" else class_rows(24)
        name = changes.pop("name", "run")
        data = write_jsonl(folder / f"{name}.jsonl", rows)
        tree: dict[str, Any] = {
            "model": {"name_or_path": str(changes.pop("model", models(family, task)))},
            "task": task,
            "data": {"path": str(data), "val_set_size": 0, "max_length": 48, "cache_dir": str(folder / "cache")},
            "method": {"name": "lora", "r": 4, "target_modules": "all-linear"},
            "training": {"learning_rate": 5e-3, "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1,
                         "bf16": False, "device": "cpu", "lr_scheduler_type": "constant"},
            "output_dir": str(folder / "runs" / name),
        }  # fmt: skip
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return load_recipe(file, [], NAMES)

    return make


@pytest.fixture
def recipe(tmp_path, models) -> Callable[..., LoadedRecipe]:
    """Write a recipe and load it: see `recipes_in`."""
    return recipes_in(tmp_path, models)
