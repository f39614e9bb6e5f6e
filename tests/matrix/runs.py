"""Every method through the training loop on tiny models: recipes on disk, and what a run did to each parameter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from peftcli.distributed.whole_tensors import held_parts
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.training import run as run_module
from peftcli.training.session import Session
from tests.recipes import WORDS, Recorder, chat_rows, class_rows, write_jsonl
from tests.tiny import save_tiny

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "target_modules": "all-linear"},
    "qlora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1},
    "oft": {"oft_block_size": 8},
    "miss": {"r": 8},
    "hira": {"r": 4},
    "lokr": {"r": 2},
    "shira": {"r": 4},
    "prefix_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "adapter": {"bottleneck_size": 4},
    "parallel_adapter": {"bottleneck_size": 8, "dropout": 0.0},
    "compacter": {"bottleneck_size": 4, "phm_dim": 2},
    "loreft": {"r": 4, "positions": "f2+l2"},
    "mam": {"num_virtual_tokens": 4, "bottleneck_size": 8, "encoder_hidden_size": 8, "dropout": 0.0},
    "unipelt": {"prefix": {"num_virtual_tokens": 4, "encoder_hidden_size": 8}},
    "compose": {"parts": [{"name": "lora", "r": 2}, {"name": "adapter", "bottleneck_size": 4}]},
}
"""Hyper-parameters for models of width 32, where a method's defaults are made for real widths; no dropout, so that the
losses of two processes can be compared with those of one."""

TASKS = {
    "bert": "sequence_classification",
    "roberta": "sequence_classification",
    "albert": "sequence_classification",
    "deberta-v2": "sequence_classification",
    "t5": "seq2seq_lm",
    "bart": "seq2seq_lm",
}
"""Of a family here; causal_lm otherwise."""

WIDE: dict[str, dict[str, Any]] = {
    "t5": {"initializer_factor": 1.3},
    "bart": {"init_std": 0.2, "forced_eos_token_id": None},  # generate would end every text with it
}


def tiny_rows(task: str, count: int = 12) -> list[dict[str, Any]]:
    """Return rows of different lengths for a task."""
    if task == "sequence_classification":
        return class_rows(count)
    if task == "causal_lm":
        return chat_rows(count)
    return [
        {"input": f"{WORDS[i % 12]} {'and ' * (i % 4)}", "target": f"{WORDS[(i * 7) % 12]} on"} for i in range(count)
    ]


class Workshop:
    """A directory of tiny models, rows and runs."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def model(self, family: str) -> Path:
        """Return the directory of a tiny model, written on first use."""
        path = self.home / "models" / family
        if not path.exists():
            task = TASKS.get(family, "causal_lm")
            wide = WIDE.get(family, {"initializer_range": 0.2})
            save_tiny(path, family, "base" if "classification" in task else task, **wide)
        return path

    def rows(self, family: str) -> Path:
        """Return a data file for the family's task."""
        task = TASKS.get(family, "causal_lm")
        return write_jsonl(self.home / f"{task}.jsonl", tiny_rows(task))

    def recipe(self, name: str, family: str, method: str, /, **changes: Any) -> LoadedRecipe:
        """Write a recipe of three steps and load it.

        Args:
            name: of the run.
            changes: dotted keys with two underscores for a dot.
        """
        tree: dict[str, Any] = {
            "model": {"name_or_path": str(self.model(family))},
            "task": TASKS.get(family, "causal_lm"),
            "data": {"path": str(self.rows(family)), "val_set_size": 0, "max_length": 48,
                     "cache_dir": str(self.home / "cache")},
            "method": {"name": method, **SMALL.get(method, {})},
            "training": {"learning_rate": 0.01, "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1,
                         "lr_scheduler_type": "constant", "bf16": False, "device": "cpu", "save_strategy": "no",
                         "max_new_tokens": 4},
            "output_dir": str(self.home / "runs" / name),
        }  # fmt: skip
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        file = self.home / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return load_recipe(file, [], NAMES)


@dataclass
class Seen:
    """What a run did to the parameters of its model.

    Args:
        moved: trainable ones that had a non-zero gradient in some step.
        stray: frozen ones that asked for a gradient, held one, or changed.
        losses: of each step.
        digest: a hash of the trained values.
        session: the run in memory.
    """

    trainable: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    stray: set[str] = field(default_factory=set)
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    digest: str = ""
    session: Session | None = None

    def check(self) -> None:
        """Assert that exactly the trainable parameters had gradients and changed, within three steps."""
        assert self.trainable and self.steps == 3
        assert self.trainable - self.moved == set(), "trainable, and never a gradient"
        assert self.stray == set(), "frozen, and yet touched"


@contextmanager
def watching(seen: Seen) -> Iterator[None]:
    """Note what the loop does to parameters, at the moment when the protocol shows gradients to the method."""
    inner = run_module.train_steps

    def watched(session: Session, *rest: Any) -> bool:
        attachment = session.attachment
        trainable = attachment.trainable_parameters()
        mine = {id(parameter) for parameter in trainable.values()}
        seen.trainable, seen.session = set(trainable), session
        frozen = {name: p for name, p in session.model.named_parameters() if id(p) not in mine}
        before = {name: p.detach().clone() for name, p in frozen.items()}
        after_step = attachment.after_optimizer_step

        def look(step: int, total: int) -> None:
            seen.steps += 1
            seen.moved |= {n for n, p in trainable.items() if p.grad is not None and bool((p.grad != 0).any())}
            seen.stray |= {n for n, p in frozen.items() if p.requires_grad or p.grad is not None}
            after_step(step, total)

        attachment.after_optimizer_step = look  # type: ignore[method-assign]  # of this one run
        done = inner(session, *rest)
        seen.stray |= {name for name, p in frozen.items() if not _same(p.detach(), before[name])}
        seen.digest = digest_of(trainable)
        return done

    run_module.train_steps = watched
    try:
        yield
    finally:
        run_module.train_steps = inner


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare what holds two tensors; a class of its own for packed weights may not compare itself."""
    return all(torch.equal(mine, its) for mine, its in zip(held_parts(one), held_parts(other), strict=True))


def digest_of(tensors: dict[str, Any]) -> str:
    """Return a hash over names and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor: Tensor = tensors[name].detach().float().cpu().contiguous()
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def watched_training(loaded: LoadedRecipe) -> Seen:
    """Train a recipe and return what was seen."""
    seen, recorder = Seen(), Recorder()
    with watching(seen):
        run_module.train(loaded, reporter=recorder, overwrite=True)
    seen.losses = recorder.losses
    return seen
