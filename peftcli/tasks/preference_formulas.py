"""The losses of preference tuning, each a function of the log-probabilities of answers, and the metrics.

Names are TRL's. Where a paper and the libraries differ, the function says which reading this is.

For the metrics a pair's prediction is its rewards, its reference its log-probabilities, chosen before rejected. A
single answer's prediction is its reward and whether it is good (1 or 0), its reference its log-probability and the
divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from peftcli.recipe.preference_losses import PreferenceLoss

Values = dict[str, float]
Metric = Callable[[Sequence[Any], Sequence[Any]], Values]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of pairs, each (pairs, 2): chosen, rejected; float32 or float64.

    Args:
        sums: of an answer's tokens under the model: log p(answer | prompt).
        lengths: tokens of each answer.
        reference: `sums` under the model before the first step; None for a loss without a reference.
    """

    sums: Tensor
    lengths: Tensor
    reference: Tensor | None = None

    def ratios(self, *, per_token: bool) -> Tensor:
        """Return log p / p_reference, or log p without a reference: (pairs, 2).

        Args:
            per_token: divide by the tokens of each answer.
        """
        found = self.sums if self.reference is None else self.sums - self.reference
        return found / self.lengths if per_token else found


def preference_losses(scores: Scores, loss: PreferenceLoss) -> Tensor:
    """Return the loss of each pair: (pairs,).

    `sft_weight` adds that weight times the mean negative log-likelihood of the chosen answer's tokens (RPO: Pang et
    al. 2024, arXiv:2404.19733, equation 1). The mean is over each answer and then over pairs, as in the paper; TRL's
    `rpo_alpha`, and its ORPO and CPO, take it over all tokens of a batch, which depends on what is batched.
    """
    margin, _ = _margin(scores, loss)
    found = _FORMULAS[loss.name](margin, loss) if loss.name != "orpo" else loss.beta * _odds_ratio_loss(scores)
    if loss.sft_weight:
        found = found - loss.sft_weight * scores.sums[:, 0] / scores.lengths[:, 0]
    return found


def single_losses(ratios: Tensor, good: Tensor, divergence: Tensor, loss: PreferenceLoss) -> Tensor:
    """Return KTO's loss of each answer: (answers,).

    Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1, equation 7: w (1 - sigmoid(beta (r - z))) of a good answer
    and w (1 - sigmoid(beta (z - r))) of a bad one, with their weights w (the paper's lambda).

    The paper and TRL estimate z in each micro-batch, from the answers to its other prompts; of accumulated
    micro-batches TRL takes each by itself. Here z is one number for a whole step, so that a step does not depend on how
    it is batched, and each prompt's other answer is the same one in every epoch (`data.rows.single_answers`).

    Args:
        ratios: r = log p / p_reference of each answer, (answers,).
        good: 1 for a good answer, 0 for a bad one, (answers,).
        divergence: z, the mean log-ratio of mismatched prompts and answers, 0 at least, without a gradient; a scalar.
    """
    import torch

    sign = (2 * good - 1).to(ratios.dtype)
    weights = torch.where(good > 0, loss.desirable_weight, loss.undesirable_weight).to(ratios.dtype)
    return weights * (1 - (loss.beta * sign * (ratios - divergence)).sigmoid())


def rewards(scores: Scores, loss: PreferenceLoss) -> Tensor:
    """Return beta times what the loss compares, (pairs, 2): TRL's `rewards/chosen` and `rewards/rejected`."""
    return loss.beta * scores.ratios(per_token=loss.info.per_token)


def _margin(scores: Scores, loss: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """Return by how much the chosen answer is ahead, (pairs,), and the two values."""
    ratios = scores.ratios(per_token=loss.info.per_token)
    return ratios[:, 0] - ratios[:, 1], ratios


def _sigmoid(margin: Tensor, loss: PreferenceLoss) -> Tensor:
    """Return -log sigmoid(beta m), mixed with the loss of the swapped pair (Mitchell 2023, cDPO, equation 3).

    Of CPO the margin is that of log p (Xu et al. 2024, equation 3).
    """
    import torch.nn.functional as F

    beta, smoothing = loss.beta, loss.label_smoothing
    found = -F.logsigmoid(beta * margin) * (1 - smoothing)
    return found - F.logsigmoid(-beta * margin) * smoothing if smoothing else found


def _robust(margin: Tensor, loss: PreferenceLoss) -> Tensor:
    """Return DPO's loss without the bias that a share of swapped pairs gives it."""
    import torch.nn.functional as F

    beta, swapped = loss.beta, loss.label_smoothing
    right, wrong = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    return (right * (1 - swapped) - wrong * swapped) / (1 - 2 * swapped)


def _ipo(margin: Tensor, loss: PreferenceLoss) -> Tensor:
    """Return (m - 1 / (2 beta))^2.

    The paper's log-ratios are those of whole answers; in TRL, after its authors' advice, they are means over an
    answer's tokens. Here too.
    """
    return (margin - 1 / (2 * loss.beta)) ** 2


def _hinge(margin: Tensor, loss: PreferenceLoss) -> Tensor:
    """Return max(0, 1 - beta m)."""
    return (1 - loss.beta * margin).relu()


def _simpo(margin: Tensor, loss: PreferenceLoss) -> Tensor:
    """Return -log sigmoid(beta m - gamma) of mean log-probabilities; `label_smoothing` as in TRL's CPOTrainer."""
    return _sigmoid(margin - loss.simpo_gamma / loss.beta, loss)


_FORMULAS: dict[str, Callable[[Tensor, PreferenceLoss], Tensor]] = {
    "sigmoid": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "simpo": _simpo,
    "cpo": _sigmoid,
}


def _odds_ratio_loss(scores: Scores) -> Tensor:
    """Return -log sigmoid(log odds(chosen) / odds(rejected)), the odds of geometric mean probabilities of a token.

    Hong et al. 2024, equations 3, 4 and 7. The likelihood that ORPO adds is that of the chosen answer's tokens, as in
    the paper; TRL's also counts the prompt's.
    """
    import torch.nn.functional as F

    means = (scores.sums / scores.lengths).clamp(max=-1e-7)  # a probability of 1 has no odds
    odds = means - _log_one_minus_exp(means)
    return -F.logsigmoid(odds[:, 0] - odds[:, 1])


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012)."""
    import torch

    near = x > -math.log(2)
    # each branch sees only values that it is finite for: an infinite one would make the gradient nan
    of_near = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, of_near, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def preferred(name: str, of: Callable[[Sequence[float], Sequence[float]], float]) -> Metric:
    """Return the mean of a function of a pair's rewards and log-probabilities: (chosen, rejected) each."""

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Values:
        values = [float(of(rewards, logps)) for rewards, logps in zip(predictions, references, strict=True)]
        return {name: math.fsum(values) / max(1, len(values))}

    return function


def answers(name: str, place: str, good: bool) -> Metric:
    """Return the mean reward, or log-probability, of the single answers of one kind; nan where there are none."""

    def function(predictions: Sequence[Any], references: Sequence[Any]) -> Values:
        rows = zip(predictions, references, strict=True)
        values = [(reward, logp)[place == "logps"] for (reward, own), (logp, _) in rows if bool(own) == good]
        return {name: math.fsum(values) / len(values) if values else math.nan}

    return function


_GOOD, _BAD = (answers("reward", "rewards", good) for good in (True, False))


def answers_apart(predictions: Sequence[Any], references: Sequence[Any]) -> Values:
    """Return how far the mean rewards of good and of bad answers are apart; nan where one kind is missing."""
    good, bad = (of(predictions, references)["reward"] for of in (_GOOD, _BAD))
    return {"rewards_margins": good - bad}


def divergence(_predictions: Sequence[Any], references: Sequence[Any]) -> Values:
    """Return the divergence, which is the same for all rows of a set."""
    return {"kl": math.fsum(kl for _, kl in references) / max(1, len(references))}
