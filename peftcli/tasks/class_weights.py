"""Weights of the classes in a classifier's loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftcli.errors import Problem, UserError
from peftcli.tasks.task import TaskSettings

if TYPE_CHECKING:
    from torch import Tensor


def class_weights(settings: TaskSettings, classes: int) -> Tensor | None:
    """Return the weight of each class in the loss, or None.

    `balanced` is rows / (classes * rows of the class), scikit-learn's rule.

    Raises:
        UserError: the list has another length than there are classes.
    """
    import torch

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
    import torch

    counts = Counter(int(label) for label in labels)
    total = sum(counts.values())
    return torch.tensor([total / (classes * counts[i]) if counts[i] else 1.0 for i in range(classes)])
