"""What a task is to the loop: a loss with its count, predictions, and which metrics they get.

A task's file holds its record, which `peft validate` reads: it imports torch inside functions, never at the top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from peftcli.layers.added_modules import ANSWERS
from peftcli.layers.joined_documents import Documents
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.decoding import GREEDY, Decoding, OnText
from peftcli.tasks.task_info import TaskInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftcli.layers.row_draws import DrawnRows


# keys of a prepared batch that describe the input; the rest are targets
INPUT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", ANSWERS)


@dataclass(frozen=True)
class TaskSettings:
    """What a task needs to know of the run.

    Args:
        tokenizer: for generation.
        labels: `data.LabelSpec`, or None for text tasks.
        training: loss options and the length of generated text.
        train_labels: class ids of the training rows, for balanced weights; None when not needed.
        stop_ids: tokens that end a generated text, besides the model's own.
        positions: what a row, with the text generated behind it, may take of the model's learned positions, or None.
        target_positions: those of the decoder, where it has other ones than the encoder, or None.
        decoding: how the tokens of a generated text are chosen.
        on_text: receives a generated text piece by piece; for batches of one row.
    """

    tokenizer: Any
    labels: Any
    training: TrainingSpec
    train_labels: Sequence[int] | None = None
    stop_ids: tuple[int, ...] = ()
    positions: int | None = None
    target_positions: int | None = None
    decoding: Decoding = GREEDY
    on_text: OnText | None = None


@dataclass
class Batch:
    """One micro-batch, on the device once `to` was called.

    Args:
        inputs: keyword arguments of the model.
        targets: tensors that only the task reads.
        count: what the loss sum is divided by, summed over a whole step: supervised tokens, rows, or class weights.
        tokens: non-padding input tokens.
        supervised: supervised tokens or rows.
        rows: rows in it.
        drawn: its rows, by which training draws random masks; None leaves them to torch's random state.
        idle: whether it is computed only because all processes must run a divided model equally often; its loss counts
            as zero.
        of_all: what the loss of each row takes from all rows of the step, or of the set that is evaluated: the mean of
            `Task.look_ahead`, a scalar. None where nothing is taken, or only memory is measured.
        ahead: of the first micro-batch of a step, what is looked at before: this process's mismatched sequences.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    count: float
    tokens: int
    supervised: int
    rows: int
    drawn: DrawnRows | None = None
    idle: bool = False
    of_all: Tensor | None = None
    ahead: tuple[Batch, ...] = ()

    def as_idle(self) -> Batch:
        """Return the batch as one whose result counts for nothing."""
        return replace(self, count=0.0, tokens=0, supervised=0, idle=True)

    def documents(self) -> Documents:
        """Return the documents in the batch's one row; positions jump at each. Empty without."""
        positions = self.inputs.get("position_ids")
        if positions is None or len(positions) != 1:
            return Documents()
        return Documents.at(positions[0].numpy())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; on CUDA, copies from pinned memory do not block.

        Elsewhere a copy that does not block may read what is freed here already (PyTorch issue 139550, on MPS).
        """
        ahead = device.type == "cuda"
        self.inputs = {key: value.to(device, non_blocking=ahead) for key, value in self.inputs.items()}
        self.targets = {key: value.to(device, non_blocking=ahead) for key, value in self.targets.items()}
        return self

    def pinned(self) -> Batch:
        """Return the batch in pinned memory."""
        self.inputs = {key: value.pin_memory() for key, value in self.inputs.items()}
        self.targets = {key: value.pin_memory() for key, value in self.targets.items()}
        return self


@dataclass(frozen=True)
class LossTerms:
    """A loss as a sum (float32, on the device) and what to divide it by."""

    loss_sum: Tensor
    count: float


@dataclass(frozen=True)
class RowTerms:
    """The loss of each row of a micro-batch: (rows,) tensors on the device; `right` where right tokens are counted."""

    loss_sums: Tensor
    counts: Tensor
    right: Tensor | None = None


@dataclass
class Evaluated:
    """What one evaluated micro-batch gives: plain loss terms, and one prediction and reference per row (or none).

    `right` counts right tokens on the device, where a task was asked for it; so are `rows`, the terms of each row.
    """

    terms: LossTerms
    right: Tensor | None = None
    predictions: list[Any] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)
    rows: RowTerms | None = None


class PrepareInputs(Protocol):
    """`Attachment.prepare_inputs`: virtual tokens are put in front here."""

    def __call__(self, batch: Mapping[str, Any], *, generate: bool = False) -> dict[str, Any]:
        """Return the batch as the model must receive it."""
        ...


AtStart = Callable[[], AbstractContextManager[None]]
"""Makes the context in which the live model is what it was before the first step, without gradients."""


def unprepared(batch: Mapping[str, Any], *, generate: bool = False) -> dict[str, Any]:  # noqa: ARG001  # see above
    """Return the batch as it is: no method changes inputs."""
    return dict(batch)


class Task(ABC):
    """One task. A subclass is one small file.

    Attributes:
        info: what is known of it before there is a run.
        metric_kind: which metrics apply: one of the kinds in `info.predictions`.
        at_start: of a run that compares with the model before the first step in every pass (`needs_reference`); None
            where rows bring what that model makes of them.
    """

    info: ClassVar[TaskInfo]

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.metric_kind = next(iter(self.info.predictions))
        self.prepare_inputs: PrepareInputs = unprepared
        self.at_start: AtStart | None = None

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The metrics that are computed unasked."""
        return self.info.predictions[self.metric_kind]

    def compare_with(self, at_start: AtStart) -> None:
        """Compare with the model before the first step in every pass, instead of with numbers beside the rows."""
        self.at_start = at_start

    def bind(self, model: nn.Module, prepare_inputs: PrepareInputs) -> list[str]:
        """Look at the live model once, attached and on its device; return notes for the user.

        Args:
            prepare_inputs: the attachment's; the last change of a batch before the model sees it.
        """
        self.prepare_inputs = prepare_inputs
        return []

    def generating(
        self,
        stop_ids: tuple[int, ...],
        decoding: Decoding = GREEDY,
        on_text: OnText | None = None,
        max_new_tokens: int | None = None,
    ) -> Task:
        """Return the same task, bound as it is, whose texts end at these tokens, too, and are made in this way.

        Args:
            max_new_tokens: longest text in tokens; None is the recipe's.
        """
        other, training = copy(self), self.settings.training
        if max_new_tokens is not None:
            training = training.model_copy(update={"max_new_tokens": max_new_tokens})
        stops = stop_ids or self.settings.stop_ids
        other.settings = replace(self.settings, stop_ids=stops, decoding=decoding, on_text=on_text, training=training)
        return other

    def batch(self, collated: Mapping[str, Tensor], tokens: int, *, generate: bool = False) -> Batch:
        """Return a collated batch as inputs, targets and counts; still on the CPU, so counting does not wait.

        Args:
            tokens: non-padding input tokens.
            generate: for a generating `predict`, which prepares the inputs itself.
        """
        rows = len(collated["input_ids"])
        tensors = collated if generate else self.prepare_inputs(collated)
        inputs = {key: tensors[key] for key in INPUT_KEYS if key in tensors}
        return self.with_targets(Batch(inputs, {}, 0.0, tokens, 0, rows), tensors)

    @abstractmethod
    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Return `batch` with targets and counts filled in from the collated tensors; labels may be absent."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the training loss of a micro-batch as a sum, smoothing and class weights included."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the plain loss and the predictions of a micro-batch.

        Args:
            by_row: also return the terms of each row.
        """

    @property
    def needs_reference(self) -> bool:
        """Whether rows are compared with what the model before the first step makes of them (`log_probabilities`)."""
        return False

    def look_ahead(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return a sum over mismatched sequences (`data.rows.referenced_rows.others_of`), computed before any loss.

        Only for rows that have them; without gradients and dropout. The mean over all rows becomes `Batch.of_all`.
        """
        raise NotImplementedError(f"{self.info.name} takes nothing from all rows")

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each answer, of preferences: (rows, 2), chosen, rejected, or (rows, 1)."""
        raise NotImplementedError(f"{self.info.name} has no pairs of answers")

    def derived_metrics(self, loss: float) -> dict[str, float]:
        """Return metrics that follow from the mean loss alone."""
        return {}

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Return `prediction` and `scores` of each row, of generated text also `finish_reason`; needs no labels."""
