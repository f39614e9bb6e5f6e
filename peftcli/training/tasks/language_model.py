"""What causal and sequence-to-sequence language models share: a loss at supervised positions, generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.chunked_loss import head_loss
from peftcli.training.tasks.base import IGNORED, Batch, Evaluated, LossTerms, PrepareInputs, Task, TaskSettings
from peftcli.training.tasks.generation import generate
from peftcli.training.tasks.lm_head import HeadRoute, find_route


class LanguageModelTask(Task):
    """Next-token loss over supervised positions only; predictions are generated greedily.

    Attributes:
        shift: positions between a prediction and its target: 1 for causal models, 0 for decoders with shifted inputs.
    """

    metric_kind = "text"
    generates = True
    shift = 1

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.route: HeadRoute | None = None

    def probe_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return a few tokens on which the route to the head is tried."""
        ids = torch.arange(4, device=device)[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def bind(self, model: nn.Module, prepare_inputs: PrepareInputs) -> list[str]:
        """Find the way to the head's input."""
        super().bind(model, prepare_inputs)
        probe = self.probe_inputs(next(model.parameters()).device)
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
        row, position = torch.nonzero(labels != IGNORED, as_tuple=True)
        batch.targets = {"row": row, "position": position, "target": labels[row, position].long()}
        batch.count = float(len(row))
        batch.supervised = len(row)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the summed next-token cross-entropy."""
        smoothing = self.settings.training.label_smoothing_factor
        return LossTerms(self._loss_sum(model, batch, smoothing), batch.count)

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        """Return the plain loss; text metrics come from generation, apart."""
        return Evaluated(LossTerms(self._loss_sum(model, batch, 0.0), batch.count))

    def derived_metrics(self, loss: float) -> dict[str, float]:
        """Return perplexity."""
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf}

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Generate a text for each row."""
        inputs = self.prepare_inputs(batch.inputs, generate=True)
        return generate(model, inputs, self.settings.tokenizer, max_new_tokens=self.settings.training.max_new_tokens)

    def _loss_sum(self, model: nn.Module, batch: Batch, smoothing: float) -> Tensor:
        targets = batch.targets
        inputs = {**self.prepare_inputs(batch.inputs), "use_cache": False}
        if self.route is None:
            logits = model(**inputs).logits
            picked = logits.flatten(0, 1).index_select(0, self._flat(targets, logits, batch))
            return F.cross_entropy(picked.float(), targets["target"], reduction="sum", label_smoothing=smoothing)
        hidden = self.route.hidden_states(model, inputs)
        picked = hidden.flatten(0, 1).index_select(0, self._flat(targets, hidden, batch))
        return head_loss(
            self.route.head, picked, targets["target"], transform=self.route.transform, label_smoothing=smoothing
        )

    def _flat(self, targets: Mapping[str, Tensor], states: Tensor, batch: Batch) -> Tensor:
        """Return indices into (batch * positions); virtual tokens that a method put in front are passed over."""
        length = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).shape[1]
        extra = states.shape[1] - length
        return targets["row"] * states.shape[1] + targets["position"] + extra
