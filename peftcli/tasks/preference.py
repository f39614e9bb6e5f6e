"""Preference tuning: of two answers to a prompt the chosen one becomes likelier than the rejected one.

A pair's two sequences go through the model in the same micro-batch, so that a pair's loss is computed at once, and the
loss of a step is the mean over its pairs, however they are batched and on however many processes. A loss of single
answers (KTO) takes a number from all rows of a step, which is computed before the first micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftcli.errors import UserError
from peftcli.recipe.preference_losses import prediction_kind, preference_loss
from peftcli.tasks.causal_lm import INFO as CAUSAL_LM
from peftcli.tasks.causal_lm import CausalLM
from peftcli.tasks.preference_formulas import Scores, preference_losses, rewards, single_losses
from peftcli.tasks.task import Batch, Evaluated, LossTerms, RowTerms, TaskSettings
from peftcli.tasks.task_info import TaskInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

INFO = TaskInfo(
    name="preference",
    summary="the chosen of two answers, rather than the rejected one (DPO and its family)",
    auto_class=CAUSAL_LM.auto_class,
    mapping=CAUSAL_LM.mapping,
    whole_class=CAUSAL_LM.whole_class,
    whole_mapping=CAUSAL_LM.whole_mapping,
    rows="preferences",
    predictions={
        "preferences": (
            "rewards_accuracies",
            "rewards_margins",
            "rewards_chosen",
            "rewards_rejected",
            "logps_chosen",
            "logps_rejected",
        ),
        "answers": ("rewards_margins", "rewards_chosen", "rewards_rejected", "logps_chosen", "logps_rejected", "kl"),
    },
    generates=True,
    why_not_split="part the two answers of a pair",
    refused=CAUSAL_LM.refused,
    pipeline_tag=CAUSAL_LM.pipeline_tag,
    hf_task_type=CAUSAL_LM.hf_task_type,
)

LEARNT, REFERENCE, GOOD = "learnt", "reference", "good"
"""Of a collated batch: tokens to compare of each sequence, (sequences,), chosen before rejected; log-probabilities of
each sequence's answer before the first step, (rows, sequences of a row); for single answers 1 if one
is good, else 0, (rows,)."""
WIDEST = "widest"
"""An empty tensor, as long as the longest answer of a batch."""


class Preference(CausalLM):
    """A loss of the answers' log-probabilities; predictions are generated texts."""

    info = INFO

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.chosen_loss = preference_loss(settings.training)
        self.metric_kind = prediction_kind(settings.training)
        self._sequences = 1 if self.chosen_loss.info.unpaired else 2

    @property
    def needs_reference(self) -> bool:
        """Whether rows need their log-probabilities under the model before the first step."""
        return self.chosen_loss.info.reference

    def batch(self, collated: Mapping[str, Tensor], tokens: int, *, generate: bool = False) -> Batch:
        """Return a collated batch; what belongs to whole sequences is no business of the method's parts."""
        own = {key: collated[key] for key in (LEARNT, REFERENCE, GOOD) if key in collated}
        plain = {key: value for key, value in collated.items() if key not in own}
        made = super().batch(plain, tokens, generate=generate)
        if LEARNT in own:
            if GOOD in own and self._sequences == 2:  # only of a stream: other rows are checked when they are prepared
                loss = self.chosen_loss.name
                reason = f"a row has one answer with a label, and the loss {loss} compares two answers to a prompt"
                raise UserError(reason, suggestion="write training.loss_type: kto, without data.streaming")
            most = int(own[LEARNT].max())  # as a shape, so that no device is asked for the number
            made.targets |= {**own, WIDEST: own[LEARNT].new_empty(most)}
            made.count = float(len(own[LEARNT]) // self._sequences)
        return made

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probability of each row's answers, of pairs (rows, 2): chosen, rejected, of single answers
        (rows, 1); no logits are kept.
        """
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
        return padded.sum(1).view(-1, self._sequences)

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Return the summed loss of the pairs, or of the single answers."""
        return LossTerms(self._losses(self._scores(model, batch), batch).sum(), batch.count)

    def look_ahead(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed log-ratios of mismatched sequences, whose mean estimates the divergence: a scalar."""
        return self._scores(model, batch).ratios(per_token=False).sum()

    def evaluate(self, model: nn.Module, batch: Batch, *, by_row: bool = False) -> Evaluated:
        """Return the loss, and of each row what its metrics take.

        Of a pair these are its rewards (predictions) and log-probabilities (references), chosen before rejected; of a
        single answer its reward and whether it is good, and its log-probability and the divergence.
        """
        import torch

        scores = self._scores(model, batch)
        losses = self._losses(scores, batch)
        found, known = rewards(scores, self.chosen_loss), scores.sums
        if GOOD in batch.targets:
            good = batch.targets[GOOD].to(found.dtype)
            found = torch.cat((found, good[:, None]), 1)
            known = torch.cat((known, self._divergence(batch).to(known).expand_as(known)), 1)
        return Evaluated(
            LossTerms(losses.sum(), batch.count),
            predictions=found.float().tolist(),
            references=known.float().tolist(),
            rows=RowTerms(losses, torch.ones_like(losses)) if by_row else None,
        )

    def derived_metrics(self, loss: float) -> dict[str, float]:
        """Return nothing: the loss has no perplexity."""
        return {}

    def _losses(self, scores: Scores, batch: Batch) -> Tensor:
        if self._sequences == 2:
            return preference_losses(scores, self.chosen_loss)
        ratios = scores.ratios(per_token=False)[:, 0]
        return single_losses(ratios, batch.targets[GOOD], self._divergence(batch), self.chosen_loss)

    def _divergence(self, batch: Batch) -> Tensor:
        """Return the estimate, 0 at least: a scalar."""
        return batch.targets[GOOD].new_zeros(()) if batch.of_all is None else batch.of_all.relu()

    def _scores(self, model: nn.Module, batch: Batch) -> Scores:
        reference = self._reference(model, batch) if self.needs_reference else None
        sums = self.log_probabilities(model, batch)
        lengths = batch.targets[LEARNT].view(-1, self._sequences).to(sums.dtype)
        return Scores(sums, lengths, None if reference is None else reference.to(sums.dtype))

    def _reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probabilities of the model before the first step, which the rows bring or which are due now.

        They come before the pass with gradients, which must find the values that it is to change in their place.
        """
        if self.at_start is None:
            return batch.targets[REFERENCE]
        with self.at_start():
            return self.log_probabilities(model, batch)
