"""Fixtures for the command line: called as a user calls it, with tiny models, a few rows and recipes on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.cli.app import main

COLOURS = {"warm": "red", "cold": "blue"}
"""Label: the word that gives it away."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return standard output as the one JSON document that it must be."""
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run `peft` with these arguments in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


@dataclass(frozen=True)
class Workspace:
    """A directory with models, data and recipes."""

    path: Path

    def recipe(self, name: str = "recipe", /, **changes: Any) -> Path:
        """Write the classification recipe with `changes` by dotted key (dots written as two underscores)."""
        tree: dict[str, Any] = {
            "model": {"name_or_path": str(self.path / "bert")},
            "task": "sequence_classification",
            "data": {"path": str(self.path / "colours.jsonl"), "val_set_size": 0.25, "max_length": 16},
            "method": {"name": "lora", "r": 4, "target_modules": "all-linear"},
            "training": {"learning_rate": 0.01, "num_train_epochs": 4, "per_device_train_batch_size": 8},
            "output_dir": str(self.path / "runs" / name),
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = tree
            for parent in parents:
                node = node[parent]
            node[last] = value
        file = self.path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return file

    def run(self, name: str = "recipe") -> Path:
        """Return the output directory of that recipe."""
        return self.path / "runs" / name


def colour_rows(number: int) -> list[dict[str, str]]:
    """Return rows whose label is told by one word."""
    fillers = ("the cat", "the dog", "a house", "not very good", "the film was bad")
    return [
        {"text": f"{fillers[i % 5]} {word} story {i}", "label": label}
        for i in range(number // 2)
        for label, word in COLOURS.items()
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a directory with a tiny encoder, a tiny decoder and rows to classify."""
    from tests.tiny import save_tiny

    path = tmp_path_factory.mktemp("cli")
    save_tiny(path / "bert", "bert", "base")
    save_tiny(path / "llama", "llama")
    write_jsonl(path / "colours.jsonl", colour_rows(40))
    return Workspace(path)
