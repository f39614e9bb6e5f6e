"""Sequence classification: one class, several classes, or a number for each text (or pair of texts)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.errors import Problem, UserError
from peftcli.tasks.task import Batch, Evaluated, LossTerms, Task, TaskSettings

DEFAULT_METRICS = {
    "single_label": ("accuracy",),
    "multi_label": ("f1_micro", "accuracy"),
    "regression": ("mse", "pearson"),
}


class SequenceClassification(Task):
    """Cross-entropy, binary cross-entropy per class, or squared error, by `labels.problem`."""

    name = "sequence_classification"
    one_for_row = True

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.problem: str = settings.labels.problem
        self.names: list[str] = list(settings.labels.names)
        self.metric_kind = self.problem
        self.default_metrics = DEFAULT_METRICS[self.problem]
        self.weights = class_weights(settings, len(self.names)) if self.problem == "single_label" else None
        if self.problem != "single_label" and settings.training.class_weights is not None:
            raise UserError(
                Problem(f"class weights need single-label rows; these are {self.problem}",
                        key="training.class_weights", suggestion="remove it")
            )  # fmt: skip

    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Fill in the labels; a row counts as its class weight."""
        labels = tensors.get("labels")
        batch.supervised = batch.rows
        if labels is None:
            return batch
        if self.problem == "single_label":
            batch.targets = {"labels": labels.long().reshape(-1)}
            weights = None if self.weights is None else self.weights[batch.targets["labels"]]
            batch.count = float(batch.rows if weights is None else weights.sum())
        else:
            batch.targets = {"labels": labels.float().reshape(batch.rows, -1)}
            batch.count = float(batch.rows)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the loss with smoothing and class weights."""
        logits = model(**batch.inputs).logits.float()
        if self.problem != "single_label":
            return LossTerms(self._plain(logits, batch), batch.count)
        weight = None if self.weights is None else self.weights.to(logits.device)
        smoothing = self.settings.training.label_smoothing_factor
        loss = F.cross_entropy(
            logits, batch.targets["labels"], weight=weight, reduction="sum", label_smoothing=smoothing
        )
        return LossTerms(loss, batch.count)

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        """Return the plain loss, and predictions as class ids, 0/1 rows or numbers."""
        logits = model(**batch.inputs).logits.float()
        terms = LossTerms(self._plain(logits, batch), float(batch.rows))
        labels = batch.targets["labels"]
        references = (labels[:, 0] if self.problem == "regression" and labels.shape[1] == 1 else labels).tolist()
        return Evaluated(terms, predictions=self._decide(logits), references=references)

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Return the label's name (or names, or the number) and a score for each class."""
        logits = model(**batch.inputs).logits.float()
        decided = self._decide(logits)
        if self.problem == "regression":
            return [{"prediction": value, "scores": {}} for value in decided]
        chances = logits.softmax(-1) if self.problem == "single_label" else logits.sigmoid()
        scores = [dict(zip(self.names, row, strict=True)) for row in chances.tolist()]
        if self.problem == "single_label":
            named: list[Any] = [self.names[i] for i in decided]
        else:
            named = [[name for name, on in zip(self.names, row, strict=True) if on] for row in decided]
        return [{"prediction": p, "scores": s} for p, s in zip(named, scores, strict=True)]

    def _plain(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch.targets["labels"]
        if self.problem == "single_label":
            return F.cross_entropy(logits, labels, reduction="sum")
        if self.problem == "multi_label":  # mean over classes, sum over rows
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
        return F.mse_loss(logits, labels, reduction="none").mean(-1).sum()

    def _decide(self, logits: Tensor) -> list[Any]:
        if self.problem == "single_label":
            return logits.argmax(-1).tolist()
        if self.problem == "multi_label":
            return (logits > 0).long().tolist()  # a chance of one half
        return logits.squeeze(-1).tolist()


def class_weights(settings: TaskSettings, classes: int) -> Tensor | None:
    """Return the weight of each class in the loss, or None.

    `balanced` is rows / (classes * rows of the class), scikit-learn's rule.

    Raises:
        UserError: the list has another length than there are classes.
    """
    wanted = settings.training.class_weights
    if wanted is None:
        return None
    if wanted == "balanced":
        return balanced_weights(settings.train_labels or [], classes)
    if len(wanted) != classes:
        raise UserError(
            Problem(f"{len(wanted)} class weights for {classes} classes", key="training.class_weights",
                    suggestion=f"give one for each of: {', '.join(settings.labels.names)}")
        )  # fmt: skip
    return torch.tensor(wanted, dtype=torch.float32)


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Return rows / (classes * rows of the class); a class without rows gets 1."""
    counts = Counter(int(label) for label in labels)
    total = sum(counts.values())
    return torch.tensor([total / (classes * counts[i]) if counts[i] else 1.0 for i in range(classes)])
