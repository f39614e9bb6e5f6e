"""Every recipe of recipes/: memory computed, method counted from the real config, a shrunk model trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from peftcli.analysis.counting import count_method
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.schema import Recipe
from peftcli.starting.shipped_recipes import read_shipped
from tests.command_line import Cli
from tests.recipes import write_jsonl
from tests.starting.real_models import known, memory_line, real_config, save_shrunk

FILES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
NAMED = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@NAMED
def test_the_memory_line_is_what_is_computed(file: Path) -> None:
    recipe = load_recipe(file, [], NAMES).recipe
    assert read_shipped(file).memory_how == memory_line(recipe)


@NAMED
def test_the_method_fits_the_real_model(file: Path) -> None:
    recipe = load_recipe(file, [], NAMES).recipe
    config = real_config(recipe.model.name_or_path)
    counts = count_method(config, recipe.task, recipe.method, num_labels=recipe.model.num_labels or 2)
    assert 0 < counts.trainable <= counts.total
    assert counts.trainable < counts.total or recipe.method.name == "full"


def test_no_config_is_left_over() -> None:
    assert set(known()) == {load_recipe(file, [], NAMES).recipe.model.name_or_path for file in FILES}


QUICK = {
    "lora-paper-roberta-sst2",
    "lora-qwen3-4b",
    "lora-mt5-translation",
    "lora-roberta-ner",
    "unipelt-paper-bert-rte",
}
"""Trained in every run of the tests; the others when slow ones are asked for."""


def rows_for(recipe: Recipe) -> list[dict[str, Any]]:
    """Return a few rows with the columns that a recipe reads."""
    data = recipe.data
    assert data is not None
    fields = re.findall(r"{(\w+)}", data.template or "")
    rows = []
    for number in range(16):
        word = ("cat", "dog", "red", "blue")[number % 4]
        values: dict[str, Any] = {
            "text": f"the {word} sat", "text_pair": f"it is {word}", "label": ("good", "bad")[number % 2],
            "tokens": ["the", word], "tags": ["O", ("A", "B")[number % 2]], "input": f"the {word}", "target": word,
            "prompt": f"what is {word}", "completion": word,
        }  # fmt: skip
        row: dict[str, Any] = dict.fromkeys(fields, f"the {word}")
        for ours, theirs in data.columns.items():
            place, _, inner = theirs.partition(".")
            if inner:
                row.setdefault(place, {})[inner] = values[ours]
            else:
                row[place] = values[ours]
        if not row and data.format == "text":
            row = {"text": f"the {word} sat on the mat " * 3}
        elif not row and recipe.task == "preference":
            row = {"prompt": f"is it {word}", "chosen": word, "rejected": "no"}
        elif not row:
            turns = ({"role": "user", "content": f"is it {word}"}, {"role": "assistant", "content": word})
            row = {"messages": list(turns)}
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    "file", [pytest.param(one, id=one.stem, marks=[] if one.stem in QUICK else pytest.mark.slow) for one in FILES]
)
def test_a_shrunk_model_trains_three_steps(file: Path, cli: Cli, tmp_path: Path) -> None:
    recipe = load_recipe(file, [], NAMES).recipe
    model = save_shrunk(tmp_path / "model", recipe.model.name_or_path, recipe.task)
    rows = write_jsonl(tmp_path / "rows.jsonl", rows_for(recipe))
    changes = [
        f"model.name_or_path={model}", "model.dtype=float32", f"data.path={rows}", "data.config=null",
        "data.split=null", "data.validation=null", "data.val_set_size=4", "data.max_rows=null", "data.max_length=32",
        f"data.cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'run'}", "training.max_steps=3",
        "training.warmup_steps=0", "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1",
        "training.device=cpu", "training.bf16=false", "training.optim=adamw_torch", "training.metrics=[f1_macro]",
        "training.eval_generate=0",
    ]  # fmt: skip
    if recipe.task != "sequence_classification":
        changes.append("training.metrics=[]")
    for size, most in (("r", 8), ("bottleneck_size", 16)):  # no more than the small matrices have
        if (getattr(recipe.method, size, None) or 0) > most:
            changes.append(f"method.{size}={most}")
    if recipe.method.name == "adalora":
        changes += ["method.tinit=null", "method.tfinal=null", "method.deltaT=null"]
    done = cli("train", file, *changes, "-q")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 3
