"""Token classification: a tag for each word, read at its first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftcli.ignored_label import IGNORED
from peftcli.tasks.class_weights import class_weights
from peftcli.tasks.task import Batch, Evaluated, LossTerms, RowTerms, Task, TaskSettings
from peftcli.tasks.task_info import TaskInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

INFO = TaskInfo(
    name="token_classification",
    summary="a tag for each word",
    auto_class="AutoModelForTokenClassification",
    mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    rows="tagged",
    predictions={"tags": ("accuracy",)},
    refused={},
    pipeline_tag="token-classification",
    hf_task_type="TOKEN_CLS",
    adapterhub_classes=("ForTokenClassification",),
)


class TokenClassification(Task):
    """Cross-entropy over the positions whose label is not -100; one tag for each of them."""

    info = INFO

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.names: list[str] = list(settings.labels.names)
        self.weights = class_weights(settings, len(self.names))

    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Fill in the tags; a token counts as its class weight."""
        labels = tensors.get("labels")
        if labels is None:
            return batch
        labels = labels.long()
        batch.targets = {"labels": labels}
        chosen = labels[labels != IGNORED]
        batch.supervised = len(chosen)
        batch.count = float(len(chosen) if self.weights is None else self.weights[chosen].sum())
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the loss with smoothing and class weights."""
        import torch.nn.functional as F

        weight = None if self.weights is None else self.weights.to(batch.targets["labels"].device)
        smoothing = self.settings.training.label_smoothing_factor
        logits = self._logits(model, batch)
        labels = batch.targets["labels"].flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), labels, weight=weight, reduction="sum", label_smoothing=smoothing)
        return LossTerms(loss, batch.count)

    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the plain loss, and for each row the predicted and the true tags by name."""
        import torch.nn.functional as F

        logits, labels = self._logits(model, batch), batch.targets["labels"]
        terms = LossTerms(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), batch.supervised)
        predictions, references = [], []
        for row, truth in zip(logits.argmax(-1).tolist(), labels.tolist(), strict=True):
            kept = [i for i, label in enumerate(truth) if label != IGNORED]
            predictions.append([self.names[row[i]] for i in kept])
            references.append([self.names[truth[i]] for i in kept])
        rows = None
        if by_row:
            losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
            rows = RowTerms(losses, (labels != IGNORED).sum(1))
        return Evaluated(terms, predictions=predictions, references=references, rows=rows)

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Return a tag and its chance for each word up to the last that has a token; null for a word without tokens.

        The label of a word's first token is the word's number, from 0; that of any other token is -100.
        """
        best = self._logits(model, batch).softmax(-1).max(-1)
        rows = []
        marks = batch.targets["labels"].tolist()
        for chances, tags, mark in zip(best.values.tolist(), best.indices.tolist(), marks, strict=True):
            first = {word: place for place, word in enumerate(mark) if word != IGNORED}
            places = [first.get(word) for word in range(max(first, default=-1) + 1)]
            rows.append(
                {
                    "prediction": [None if place is None else self.names[tags[place]] for place in places],
                    "scores": [None if place is None else chances[place] for place in places],
                }
            )
        return rows

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs).logits.float()
        return logits
