"""Sequence classification: one class, several classes, or a number for each text (or pair of texts)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.tasks.class_weights import class_weights
from peftcli.tasks.task import Batch, Evaluated, LossTerms, RowTerms, Task, TaskSettings
from peftcli.tasks.task_info import TaskInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

INFO = TaskInfo(
    name="sequence_classification",
    summary="a class, several classes, or numbers for a text or a pair of texts",
    auto_class="AutoModelForSequenceClassification",
    mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    rows="labelled",
    predictions={
        "single_label": ("accuracy",),
        "multi_label": ("f1_micro", "accuracy"),
        "regression": ("mse", "pearson"),
    },
    why_not_split="give one label to several rows",
    refused={},
    pipeline_tag="text-classification",
    hf_task_type="SEQ_CLS",
    adapterhub_classes=("ForSequenceClassification",),
)


class SequenceClassification(Task):
    """Cross-entropy, binary cross-entropy per class, or squared error, by `labels.problem`."""

    info = INFO

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.problem: str = settings.labels.problem
        self.names: list[str] = list(settings.labels.names)
        self.metric_kind = self.problem
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
        import torch.nn.functional as F

        logits = model(**batch.inputs).logits.float()
        if self.problem != "single_label":
            return LossTerms(self._plain(logits, batch), batch.count)
        weight = None if self.weights is None else self.weights.to(logits.device)
        smoothing = self.settings.training.label_smoothing_factor
        loss = F.cross_entropy(
            logits, batch.targets["labels"], weight=weight, reduction="sum", label_smoothing=smoothing
        )
        return LossTerms(loss, batch.count)

    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the plain loss, and predictions as class ids, 0/1 rows or numbers."""
        logits = model(**batch.inputs).logits.float()
        terms = LossTerms(self._plain(logits, batch), float(batch.rows))
        labels = batch.targets["labels"]
        references = (labels[:, 0] if self.problem == "regression" and labels.shape[1] == 1 else labels).tolist()
        rows = None
        if by_row:
            losses = self._of_rows(logits, batch)
            rows = RowTerms(losses, losses.new_ones(losses.shape))
        return Evaluated(terms, predictions=self._decide(logits), references=references, rows=rows)

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
        import torch.nn.functional as F

        if self.problem == "single_label":
            return F.cross_entropy(logits, batch.targets["labels"], reduction="sum")
        return self._of_rows(logits, batch).sum()

    def _of_rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the plain loss of each row, a mean over its classes or numbers: (rows,)."""
        import torch.nn.functional as F

        labels = batch.targets["labels"]
        if self.problem == "single_label":
            return F.cross_entropy(logits, labels, reduction="none")
        if self.problem == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
        return F.mse_loss(logits, labels, reduction="none").mean(-1)

    def _decide(self, logits: Tensor) -> list[Any]:
        if self.problem == "single_label":
            return logits.argmax(-1).tolist()
        if self.problem == "multi_label":
            return (logits > 0).long().tolist()  # a chance of one half
        return logits.squeeze(-1).tolist()
