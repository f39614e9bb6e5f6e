"""One tiny model with one method, sixteen rows, and training as the loop does it, through the tasks and collation.

The models are drawn with initializer_range 0.3: at the usual 0.02 a frozen head of width 32 cannot give logits beyond
0.7, whatever stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.data.rows.collation import Collator
from peftcli.data.rows.row_set import Row
from peftcli.data.store.labels import LabelSpec
from peftcli.ignored_label import IGNORED
from peftcli.models.anatomy import Anatomy
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.task import Batch, Evaluated, LossTerms, Task, TaskSettings
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import TASKS
from tests.tiny import VOCAB, kind_of, tiny_config, tiny_model, tiny_tokenizer

ROWS = 16
CLASSES = 3
MAX_STEPS = 200
EOS = 2
T5_FACTORS = {"t5": 1.3, "mt5": 0.45}  # T5's head divides by the root of the width, mT5's does not
FIRST_TASK = {
    "encoder": "sequence_classification",
    "decoder": "causal_lm",
    "seq2seq": "seq2seq_lm",
    "speech": "speech_seq2seq",
    "vision": "image_classification",
}


def changes_for(family: str) -> dict[str, Any]:
    """Return config changes that give the family's random weights some size, and its matrices rank 16."""
    if family in T5_FACTORS:
        return {"initializer_factor": T5_FACTORS[family]}
    wide: dict[str, Any] = {"init_std" if hasattr(tiny_config(family), "init_std") else "initializer_range": 0.3}
    if family == "falcon":
        wide["num_attention_heads"] = 2  # one key-value head: of 4 heads it would have width 8
    return wide


@dataclass
class Pair:
    """A method on a live tiny model, a task and its one batch."""

    model: nn.Module
    anatomy: Anatomy
    attachment: Attachment
    task: Task
    batch: Batch

    def loss(self) -> Tensor:
        """Return the mean loss of the batch."""
        terms = self.task.loss(self.model, self.batch)
        return terms.loss_sum / terms.count

    def outputs(self) -> Tensor:
        """Return the model's logits, in eval mode."""
        self.model.eval()
        with torch.no_grad():
            logits: Tensor = self.model(**self.attachment.prepare_inputs(self.batch.inputs)).logits
        return logits


def build(family: str, task: str, method: str, *, seed: int = 0, train_head: bool = True, **params: Any) -> Pair:
    """Return a tiny model with a fresh method on it.

    Args:
        seed: of the method's own initial values; those of the model and the rows are always the same.
    """
    model = tiny_model(family, task, num_labels=CLASSES, **changes_for(family))
    anatomy = read_anatomy(model)
    tokenizer = tokenizer_for(family)
    torch.manual_seed(seed)
    attachment = apply_method(model, anatomy, registry.info(method).params(**params), train_head=train_head)
    attachment.initialise(model, tokenizer=tokenizer)
    kind = TASKS[task].info.label_kind if task in TASKS else None
    settings = TaskSettings(tokenizer, LabelSpec(kind or "single_label", ("a", "b", "c")), TrainingSpec())
    if task not in TASKS:
        own = OwnLoss(settings)
        own.bind(model, attachment.prepare_inputs)
        return Pair(model, anatomy, attachment, own, own.batch(other_inputs(family)))
    one = TASKS[task](settings)
    one.bind(model, attachment.prepare_inputs)
    return Pair(model, anatomy, attachment, one, Collator(tokenizer, one).batch(rows_of(one.info.rows)))


def tokenizer_for(family: str) -> Any:
    """Return the tiny tokenizer whose padding id is the family's."""
    return tiny_tokenizer(cls=kind_of(family) == "encoder", roberta="roberta" in family)


def rows_of(kind: RowKind) -> list[Row]:
    """Return sixteen rows of six to eight random tokens, each with labels that only memory can tell."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        length = 6 + number % 3
        ids = random.integers(5, VOCAB, length).astype(np.int32)
        ids[-1] = EOS  # BART and T5 read the class there
        if kind == "text":
            labels: Any = np.where(np.arange(length) < length - 3, IGNORED, ids).astype(np.int32)
        elif kind == "pairs":
            labels = np.append(random.integers(5, VOCAB, 1 + number % 3), EOS).astype(np.int32)
        elif kind == "tagged":
            labels = np.where(np.arange(length) % 3 == 2, IGNORED, random.integers(0, CLASSES, length)).astype(np.int32)
        else:
            labels = number % CLASSES
        rows.append(Row(ids, labels, "memory", number))
    return rows


class OwnLoss(Task):
    """The model's own loss, for families that no task of the project serves (whisper, vit)."""

    info = TASKS["causal_lm"].info

    def batch(self, collated: Mapping[str, Any]) -> Batch:
        """Take the inputs as they are."""
        return Batch(dict(collated), {}, 1.0, 0, 0, ROWS)

    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Leave the labels with the inputs."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the model's mean loss."""
        return LossTerms(model(**self.prepare_inputs(batch.inputs)).loss, 1.0)

    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the loss alone."""
        return Evaluated(self.loss(model, batch))

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Predict nothing."""
        return []


def other_inputs(family: str) -> dict[str, Tensor]:
    """Return sixteen images or sounds with labels."""
    random = torch.Generator().manual_seed(0)
    if kind_of(family) == "vision":
        return {"pixel_values": torch.randn(ROWS, 3, 16, 16, generator=random), "labels": torch.arange(ROWS) % CLASSES}
    labels = torch.randint(5, VOCAB, (ROWS, 3), generator=random)
    return {"input_features": torch.randn(ROWS, 8, 32, generator=random), "labels": labels}


@dataclass
class Trained:
    """How training went: the first and the last loss, steps taken, and which parameters got a gradient early."""

    first: float
    last: float
    steps: int
    moved: set[str]

    @property
    def share(self) -> float:
        """The last loss as a share of the first."""
        return self.last / self.first


def train(pair: Pair, rate: float, target: float, *, at_most: float = math.inf) -> Trained:
    """Train on the one batch until the loss is below `target` times the first, at most `MAX_STEPS` steps.

    Args:
        rate: after a warm-up of ten steps.
        at_most: counts in place of a first loss above it, as that of a bad guess would be.
    """
    trainable = pair.attachment.trainable_parameters()
    ratios = pair.attachment.learning_rate_ratios()
    groups = [{"params": [p], "lr": 0.0, "peak": rate * ratios.get(name, 1.0)} for name, p in trainable.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    moved: set[str] = set()
    first = last = 0.0
    pair.model.train()
    for step in range(1, MAX_STEPS + 1):
        loss = pair.loss()
        last = float(loss.detach())
        first = last if step == 1 else first
        if last < target * min(first, at_most) and step > 3:
            break
        extra = pair.attachment.extra_loss()
        (loss if extra is None else loss + extra).backward()
        if step <= 3:
            moved |= {name for name, p in trainable.items() if p.grad is not None and bool((p.grad != 0).any())}
        torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, step / 10)
        optimizer.step()
        pair.attachment.after_optimizer_step(step, MAX_STEPS)
        optimizer.zero_grad(set_to_none=True)
    return Trained(first, last, step, moved)
