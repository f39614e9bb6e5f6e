"""A run reads every key of its recipe: which part of the package reads which key is recorded while runs are made."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.recipe.schema import (
    DataSource,
    DataSpec,
    DistributedSpec,
    FastPathsSpec,
    ModelSpec,
    Recipe,
    TrainingSpec,
)
from peftcli.training.run import train
from tests.recipes import class_rows

PACKAGE = Path(peftcli.__file__).parent
BLOCKS = {Recipe: "", ModelSpec: "model.", DataSpec: "data.", TrainingSpec: "training.",
          FastPathsSpec: "training.fast_paths.", DataSource: "data.", DistributedSpec: "distributed."}  # fmt: skip
WITHOUT_A_RUN = {
    "training.adam_beta1": "recipe/optimizer_table.py",
    "training.adam_beta2": "recipe/optimizer_table.py",
    "training.adam_epsilon": "recipe/optimizer_table.py",
    "training.fast_paths.allocator": "assembly/recipe_to_train.py",
    "distributed.reshard_after_forward": "distributed/strategy.py",
    "distributed.timeout": "distributed/processes.py",
    "data.name": "data/prepare_all_rows.py",
    "model.new_special_tokens": "recipe/schema.py",
    **dict.fromkeys(
        (
            f"training.{key}"
            for key in (
                "loss_type",
                "beta",
                "label_smoothing",
                "simpo_gamma",
                "sft_weight",
                "desirable_weight",
                "undesirable_weight",
            )
        ),
        "recipe/preference_losses.py",
    ),
    "training.reference": "training/start/reference_rows.py",
}
"""Keys that other parts read: tables of recipe/, the command line, and what has several validation sets."""
RUNS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "llama",
        "causal_lm",
        {
            "data__val_set_size": 4,
            "training__max_steps": None,
            "training__eval_generate": 2,
            "training__bf16": True,
            "method": {"name": "qlora", "r": 4},
        },
    ),
    ("bert", "sequence_classification", {"data__val_set_size": 8, "training__metric_for_best_model": "eval_mcc"}),
]
"""Family, task and changes of runs that reach every part; the first is on 4 bits."""


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Return key -> the files of the package, outside `recipe/`, that read it from now on."""
    found: dict[str, set[str]] = defaultdict(set)

    def reading(self: Any, name: str, _plain: Any = object.__getattribute__) -> Any:
        kind = type(self)
        if name in kind.__pydantic_fields__:
            file = Path(sys._getframe(1).f_code.co_filename)
            if file.is_relative_to(PACKAGE) and not file.is_relative_to(PACKAGE / "recipe"):
                prefix = next(text for block, text in BLOCKS.items() if issubclass(kind, block))
                found[f"{prefix}{name}"].add(str(file.relative_to(PACKAGE)))
        return _plain(self, name)

    for block in BLOCKS:
        monkeypatch.setattr(block, "__getattribute__", reading, raising=False)
    return found


def test_every_key_is_read_by_a_part_that_acts_on_it(recipe, readers: dict[str, set[str]]) -> None:
    for number, (family, task, changes) in enumerate(RUNS):
        rows = None if task == "causal_lm" else class_rows(24)
        loaded = recipe(family, task, rows, name=f"run{number}", **changes)
        train(loaded)
    keys = {f"{prefix}{name}" for block, prefix in BLOCKS.items() for name in block.model_fields}
    unread = keys - set(readers) - set(WITHOUT_A_RUN)
    assert sorted(unread) == []
    for key, file in WITHOUT_A_RUN.items():
        assert re.search(rf"[.\"]{key.rpartition('.')[2]}\b", (PACKAGE / file).read_text(encoding="utf-8")), key
