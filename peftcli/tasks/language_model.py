"""What causal and sequence-to-sequence language models share: a loss at supervised positions, generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftcli.ignored_label import IGNORED
from peftcli.tasks.task import Batch, Evaluated, LossTerms, PrepareInputs, RowTerms, Task, TaskSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftcli.tasks.lm_head import HeadRoute


ROWS_ON_A_DEVICE = 1024
"""Rows that go through the head at once at least, away from the CPU: fewer read its weight too often for their
products. With a vocabulary of 152,000 they take 0.6 GB of logits and as much of their gradient."""


class LanguageModelTask(Task):
    """Next-token loss over supervised positions only; predictions are generated texts.

    Attributes:
        shift: positions between a prediction and its target: 1 for causal models, 0 for decoders with shifted inputs.
    """

    shift = 1

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.route: HeadRoute | None = None
        self._chunk_rows = 0

    def probe_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return a few tokens on which the route to the head is tried."""
        import torch

        ids = torch.arange(4, device=device)[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def bind(self, model: nn.Module, prepare_inputs: PrepareInputs) -> list[str]:
        """Find the way to the head's input."""
        from peftcli.tasks.lm_head import find_route

        super().bind(model, prepare_inputs)
        if not self.settings.training.fast_paths.head_loss:
            return []
        device = next(model.parameters()).device
        self._chunk_rows = 0 if device.type == "cpu" else ROWS_ON_A_DEVICE
        probe = self.probe_inputs(device)
        self.route = find_route(model, {**prepare_inputs(probe), "use_cache": False})
        if self.route is None:
            return ["this model's loss needs full logits: supervised positions could not be taken out before its head"]
        return []

    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Fill in which positions predict which tokens."""
        labels = tensors.get("labels")
        if labels is None:
            return batch
        labels = labels[:, self.shift :]
        row, position = (labels != IGNORED).nonzero(as_tuple=True)
        batch.targets = {"row": row, "position": position, "target": labels[row, position].long()}
        batch.count = float(len(row))
        batch.supervised = len(row)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the summed next-token cross-entropy."""
        states = self._supervised_states(model, batch)
        smoothing = self.settings.training.label_smoothing_factor
        return LossTerms(self._loss_sum(states, batch.targets["target"], smoothing), batch.count)

    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the plain loss, and right tokens if asked; text metrics come from generation, apart."""
        states, targets = self._supervised_states(model, batch), batch.targets["target"]
        if by_row:
            return self._of_rows(states, batch)
        right = self._right_tokens(states, targets) if self._counts_right else None
        return Evaluated(LossTerms(self._loss_sum(states, targets, 0.0), batch.count), right)

    def _of_rows(self, states: Tensor, batch: Batch) -> Evaluated:
        """Return what is evaluated, by row: the supervised positions stand in the order of their rows."""
        import torch

        targets = batch.targets["target"]
        counts = torch.bincount(batch.targets["row"], minlength=batch.rows)
        rows = list(zip(torch.split(states, counts.tolist()), torch.split(targets, counts.tolist()), strict=True))
        losses = torch.stack([self._loss_sum(*row, 0.0) for row in rows])
        right = torch.stack([self._right_tokens(*row) for row in rows]) if self._counts_right else None
        terms = LossTerms(losses.sum(), batch.count)
        return Evaluated(terms, None if right is None else right.sum(), rows=RowTerms(losses, counts, right))

    def derived_metrics(self, loss: float) -> dict[str, float]:
        """Return perplexity."""
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf}

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Generate a text for each row.

        Rows that leave room for texts of other lengths are generated apart: no text ends early because of another row.
        Processes that share a divided model need equally many passes, so that there the least room counts for all.
        """
        from peftcli.distributed.sharding import is_sharded

        rooms = self.rooms(model, batch)
        if is_sharded(model) or len(set(rooms)) == 1:
            return self._generated(model, batch.inputs, min(rooms))
        mask, lines = batch.inputs["attention_mask"], dict[int, dict[str, Any]]()
        for room in sorted(set(rooms), reverse=True):
            chosen = [row for row, own in enumerate(rooms) if own == room]
            padding = int(mask[chosen].any(0).long().argmax())  # columns that none of them has
            some = {key: value[chosen][:, padding:] for key, value in batch.inputs.items()}
            lines.update(zip(chosen, self._generated(model, some, room), strict=True))
        return [lines[row] for row in range(batch.rows)]

    def _generated(self, model: nn.Module, inputs: Mapping[str, Tensor], room: int) -> list[dict[str, Any]]:
        from peftcli.tasks.generation import generate

        return generate(
            model,
            self.prepare_inputs(inputs, generate=True),
            self.settings.tokenizer,
            max_new_tokens=room,
            stop_ids=self.settings.stop_ids,
            decoding=self.settings.decoding,
            on_text=self.settings.on_text,
        )

    def rooms(self, model: nn.Module, batch: Batch) -> list[int]:
        """Return how many tokens can be generated for each row: as many as wanted, or as positions are left behind."""
        wanted, positions = self.settings.training.max_new_tokens, self.settings.positions
        if positions is None:
            return [wanted] * batch.rows
        mask = batch.inputs.get("attention_mask")
        taken = [batch.inputs["input_ids"].shape[1]] * batch.rows if mask is None else mask.sum(1).tolist()
        if getattr(model.config, "is_encoder_decoder", False):
            taken, positions = [1] * batch.rows, self.settings.target_positions or positions
        return [max(1, min(wanted, positions - own + 1)) for own in taken]  # the last token is never an input

    @property
    def _counts_right(self) -> bool:
        training = self.settings.training
        return "token_accuracy" in training.metrics or training.metric_for_best_model.endswith("token_accuracy")

    def _supervised_states(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what predicts the supervised tokens: the head's inputs, or its logits where there is no route."""
        inputs = {**batch.inputs, "use_cache": False}
        states = self.route.hidden_states(model, inputs) if self.route else model(**inputs).logits
        flat = batch.targets["row"] * states.shape[1] + batch.targets["position"]
        return states.flatten(0, 1).index_select(0, flat)

    def _loss_sum(self, states: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        from torch.nn.functional import cross_entropy

        from peftcli.layers.chunked_loss import head_loss

        if self.route is None:
            return cross_entropy(states.float(), targets, reduction="sum", label_smoothing=smoothing)
        transform = self.route.transform
        return head_loss(
            self.route.head,
            states,
            targets,
            transform=transform,
            label_smoothing=smoothing,
            least_rows=self._chunk_rows,
        )

    def _token_losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each supervised token."""
        from torch.nn.functional import cross_entropy

        from peftcli.layers.chunked_loss import head_loss

        if self.route is None:
            return cross_entropy(states.float(), targets, reduction="none")
        transform = self.route.transform
        head = self.route.head
        return head_loss(head, states, targets, transform=transform, least_rows=self._chunk_rows, by_row=True)

    def _right_tokens(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return how many supervised tokens are the likeliest ones."""
        import torch

        head = self.route.head if self.route else torch.nn.Identity()  # transforms after the head keep the order
        starts = range(0, len(states), 512)  # bounds the logits held at once
        right = [(head(states[i : i + 512]).argmax(-1) == targets[i : i + 512]).sum() for i in starts]
        return torch.stack(right).sum() if right else targets.new_zeros(())
