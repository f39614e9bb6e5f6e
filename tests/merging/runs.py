"""Run directories made without training: a tiny base, an adapter with random values, a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.adapters.format import describe
from peftcli.adapters.saving import save_adapter
from peftcli.data.store.labels import LabelSpec
from peftcli.merging import merge_run as merging
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.names import NAMES
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.schema import Recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from tests.tiny import save_tiny

LABELS = LabelSpec("single_label", ("bad", "fine", "good"))


def write_rows(path: Path, task: str, count: int = 12) -> Path:
    """Write a small data file of the task."""
    words = ["the cat sat", "the dog ran to the house", "a good film", "a bad story that was not red", "blue and green"]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            text = words[number % len(words)]
            row: dict[str, Any] = {"text": text, "label": LABELS.names[number % 3]}
            if task != "sequence_classification":
                row = {"prompt": text, "completion": f" {words[(number + 1) % len(words)]}"}
            file.write(json.dumps(row) + "\n")
    return path


def make_recipe(folder: Path, task: str, method: Mapping[str, Any], base: Path | str, **model: Any) -> Recipe:
    """Return a checked recipe on a tiny base in `folder`."""
    rows = write_rows(folder / "rows.jsonl", task)
    given = {
        "model": {"name_or_path": str(base), **model},
        "task": task,
        "data": {"path": str(rows), "val_set_size": 6, "max_length": 32},
        "method": dict(method),
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(given), encoding="utf-8")  # JSON is YAML
    return load_recipe(str(file), [], NAMES).recipe


def make_run(
    folder: Path,
    family: str,
    task: str,
    method: Mapping[str, Any],
    *,
    base_class: str = "base",
    size: float = 0.05,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
    seed: int = 7,
    **model: Any,
) -> Path:
    """Return a run directory with a random adapter.

    Args:
        base_class: of the checkpoint; `base` has no task head.
        size: spread of the noise on every trained value.
        dtype: of the base's files.
        config: settings of the tiny config.
        seed: of the adapter's values.
        model: more of the recipe's model block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = save_tiny(folder / "model", family, base_class, **dict(config or {}))
    if dtype != torch.float32:
        _convert(base, dtype)
    recipe = make_recipe(folder, task, method, base, **model)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    labels = LABELS if task == "sequence_classification" else None
    save_random_adapter(run / "adapter", recipe, labels, size=size, seed=seed)
    return run


def save_random_adapter(directory: Path, recipe: Recipe, labels: LabelSpec | None, *, size: float, seed: int) -> None:
    """Attach the recipe's method to its base, move every trained value at random, and save the adapter."""
    spec = recipe.model
    if registry.info(recipe.method.name).forces_4bit:
        spec = spec.model_copy(update={"load_in_4bit": True})
    loaded = load_model(spec, recipe.task, labels=labels)
    tokenizer = load_tokenizer(spec)
    fit_to_tokenizer(loaded.model, tokenizer)
    anatomy = read_anatomy(loaded.model)
    attachment = apply_method(loaded.model, anatomy, recipe.method)
    attachment.initialise(loaded.model, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    meta = describe(
        attachment, anatomy, task=recipe.task, base=loaded.identity, labels=labels.as_dict() if labels else None
    )
    save_adapter(directory, attachment_state=attachment.state_dict(), params=recipe.method, meta=meta)


def leave_out_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make merges wrong: the change of one weight is not folded in."""
    real = merging.plan_merge

    def without_one_rule(model: Any, stored: Any, rules: dict[str, Any], dtype: Any, **words: Any) -> Any:
        rules.popitem()
        return real(model, stored, rules, dtype, **words)

    monkeypatch.setattr(merging, "plan_merge", without_one_rule)


def _convert(directory: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config))
