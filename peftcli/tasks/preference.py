"""Preference tuning: of two answers to a prompt the chosen one becomes likelier than the rejected one.

A pair's two sequences go through the model in the same micro-batch, so that a pair's loss is computed at once, and the
loss of a step is the mean over its pairs, however they are batched and on however many processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftcli.recipe.preference_losses import preference_loss
from peftcli.tasks.causal_lm import INFO as CAUSAL_LM
from peftcli.tasks.causal_lm import CausalLM
from peftcli.tasks.preference_formulas import Scores, preference_losses, rewards
from peftcli.tasks.task import Batch, Evaluated, LossTerms, RowTerms, TaskSettings
from peftcli.tasks.task_info import TaskInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

INFO = TaskInfo(
    name="preference",
    summary="the chosen of two answers, rather than the rejected one (DPO and its family)",
    auto_class=CAUSAL_LM.auto_class,
    mapping=CAUSAL_LM.mapping,
    rows="preferences",
    predictions={
        "preferences": (
            "rewards_accuracies",
            "rewards_margins",
            "rewards_chosen",
            "rewards_rejected",
            "logps_chosen",
            "logps_rejected",
        )
    },
    generates=True,
    why_not_split="part the two answers of a pair",
    refused=CAUSAL_LM.refused,
    pipeline_tag=CAUSAL_LM.pipeline_tag,
    hf_task_type=CAUSAL_LM.hf_task_type,
)

LEARNT, REFERENCE = "learnt", "reference"
"""Of a collated batch: tokens to compare of each sequence, (sequences,), chosen before rejected; log-probabilities of
each sequence's answer before the first step, (pairs, 2)."""
WIDEST = "widest"
"""An empty tensor, as long as the longest answer of a batch."""


class Preference(CausalLM):
    """A loss of the answers' log-probabilities; predictions are generated texts."""

    info = INFO

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.chosen_loss = preference_loss(settings.training)

    @property
    def needs_reference(self) -> bool:
        """Whether rows need their log-probabilities under the model before the first step."""
        return self.chosen_loss.info.reference

    def batch(self, collated: Mapping[str, Tensor], tokens: int, *, generate: bool = False) -> Batch:
        """Return a collated batch; what belongs to whole sequences is no business of the method's parts."""
        own = {key: collated[key] for key in (LEARNT, REFERENCE) if key in collated}
        plain = {key: value for key, value in collated.items() if key not in own}
        made = super().batch(plain, tokens, generate=generate)
        if LEARNT in own:
            most = int(own[LEARNT].max())  # as a shape, so that no device is asked for the number
            made.targets |= {**own, WIDEST: own[LEARNT].new_empty(most)}
            made.count = float(len(own[LEARNT]) // 2)
        return made

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each pair's answers, (pairs, 2): chosen, rejected; no logits are kept."""
        import torch

        targets = batch.targets
        losses = self._token_losses(self._supervised_states(model, batch), targets["target"])
        learnt = targets[LEARNT]
        numbers = torch.arange(len(learnt), device=learnt.device)
        # without `output_size` the host would wait for a device's sum of `learnt`
        sequence = numbers.repeat_interleave(learnt, output_size=len(losses))
        place = torch.arange(len(losses), device=learnt.device) - (learnt.cumsum(0) - learnt)[sequence]
        # a sum of padded rows, and not `index_add`: on CUDA that adds in any order
        padded = losses.new_zeros((len(learnt), len(targets[WIDEST]))).index_put((sequence, place), -losses)
        return padded.sum(1).view(-1, 2)

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the summed loss of the pairs."""
        return LossTerms(preference_losses(self._scores(model, batch), self.chosen_loss).sum(), batch.count)

    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the loss, and of each pair rewards (predictions) and log-probabilities (references)."""
        import torch

        scores = self._scores(model, batch)
        losses = preference_losses(scores, self.chosen_loss)
        rows = RowTerms(losses, torch.ones_like(losses)) if by_row else None
        predictions = rewards(scores, self.chosen_loss).float().tolist()
        return Evaluated(
            LossTerms(losses.sum(), batch.count),
            predictions=predictions,
            references=scores.sums.float().tolist(),
            rows=rows,
        )

    def derived_metrics(self, loss: float) -> dict[str, float]:
        """Return nothing: the loss has no perplexity."""
        return {}

    def _scores(self, model: nn.Module, batch: Batch) -> Scores:
        reference = self._reference(model, batch) if self.needs_reference else None
        sums = self.log_probabilities(model, batch)
        lengths = batch.targets[LEARNT].view(-1, 2).to(sums.dtype)
        return Scores(sums, lengths, None if reference is None else reference.to(sums.dtype))

    def _reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probabilities of the model before the first step, which the rows bring or which are due now.

        They come before the pass with gradients, which must find the values that it is to change in their place.
        """
        if self.at_start is None:
            return batch.targets[REFERENCE]
        with self.at_start():
            return self.log_probabilities(model, batch)
