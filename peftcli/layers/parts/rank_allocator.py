"""AdaLoRA's rank allocation: which singular values stay, and how many at which step.

Zhang et al. 2023 (arXiv:2303.10512), as in the official code (loralib/adalora.py), whose cubic schedule runs from
tinit to T - tfinal; the paper prints another numerator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcli.layers.parts.svd_lora import SvdDelta


@dataclass(frozen=True)
class BudgetSchedule:
    """How many singular values may be non-zero at a step, over all matrices.

    Args:
        initial: sum of init_r.
        target: sum of target_r.
        tinit: steps before the first pruning.
        tfinal: steps at the end with the final budget.
        delta_t: steps between two prunings.
        total: steps of the whole run.
    """

    initial: int
    target: int
    tinit: int
    tfinal: int
    delta_t: int
    total: int

    def budget(self, step: int) -> int:
        """Return the budget at `step`, counted from 1."""
        if step <= self.tinit:
            return self.initial
        if step > self.total - self.tfinal:
            return self.target
        progress = (step - self.tinit) / (self.total - self.tfinal - self.tinit)
        return int(self.target + (self.initial - self.target) * (1.0 - progress) ** 3)

    def prunes(self, step: int) -> bool:
        """Return whether values above the budget are zeroed after `step`; always in the final phase and at the end."""
        if step <= self.tinit:
            return False
        # the last step too: with tfinal = 0 the official code may end between two prunings, above its target
        return step > self.total - self.tfinal or step == self.total or step % self.delta_t == 0

    def learns_importance(self, step: int) -> bool:
        """Return whether the sensitivity averages still move; they are frozen in the final phase."""
        return step < self.total - self.tfinal


class RankAllocator:
    """Smoothed sensitivity and uncertainty of every triplet, and the zeroing of the least important ones.

    Args:
        parts: the SVD layers by key.
        beta1, beta2: decay of the two averages, which start at zero and are not bias-corrected.
    """

    def __init__(self, parts: Mapping[str, SvdDelta], beta1: float, beta2: float) -> None:
        self.parts = dict(parts)
        self.beta1, self.beta2 = beta1, beta2
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self._frozen_masks: list[Tensor] | None = None

    @torch.no_grad()
    def step(self, step: int, schedule: BudgetSchedule) -> None:
        """Update the averages from the gradients that are still there, and prune if it is time.

        The weights are those after the optimizer's step and the gradients those before it, as in the official code.
        """
        if schedule.learns_importance(step):
            self._frozen_masks = None
            self._update()
        if schedule.prunes(step):
            self._prune(schedule.budget(step), frozen=not schedule.learns_importance(step))

    def _update(self) -> None:
        """Move the averages; all tensors at once, in a few kernels on a GPU instead of thousands."""
        moved = [(name, own.detach(), own.grad) for name, own in self._parameters() if own.grad is not None]
        if not moved:
            return
        now = torch._foreach_mul([own for _, own, _ in moved], [grad for *_, grad in moved])
        torch._foreach_abs_(now)
        for averages in (self.sensitivity, self.uncertainty):
            for (name, *_), value in zip(moved, now, strict=True):
                if name not in averages:
                    averages[name] = torch.zeros_like(value)
        sensitivity = [self.sensitivity[name] for name, *_ in moved]
        torch._foreach_lerp_(sensitivity, now, 1.0 - self.beta1)
        torch._foreach_sub_(now, sensitivity)  # from the new average
        torch._foreach_abs_(now)
        torch._foreach_lerp_([self.uncertainty[name] for name, *_ in moved], now, 1.0 - self.beta2)

    def _prune(self, budget: int, *, frozen: bool) -> None:
        masks = self._frozen_masks if frozen else None
        if masks is None:
            masks = self.pruned(budget)
            self._frozen_masks = masks if frozen else None
        for part, mask in zip(self.parts.values(), masks, strict=True):
            part.lora_E.masked_fill_(mask, 0.0)

    def pruned(self, budget: int) -> list[Tensor]:
        """Return which singular values are zeroed, (r, 1) of bool a part: those at or below the budget's threshold."""
        scores = [self._triplet_scores(key, part) for key, part in self.parts.items()]
        together = torch.cat([score.flatten() for score in scores])
        surplus = together.numel() - budget
        if surplus <= 0:  # the budget has not dropped yet: kthvalue has no 0th value
            return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
        threshold = torch.kthvalue(together, surplus).values
        return [score <= threshold for score in scores]

    def _triplet_scores(self, key: str, part: SvdDelta) -> Tensor:
        """Return E's score plus the mean scores of its row of A and its column of B, (r, 1)."""
        of_a = self._score(f"{key}.lora_A", part.lora_A).mean(dim=1)
        of_b = self._score(f"{key}.lora_B", part.lora_B).mean(dim=0)
        return self._score(f"{key}.lora_E", part.lora_E) + (of_a + of_b)[:, None]

    def _score(self, name: str, like: Tensor) -> Tensor:
        if name not in self.sensitivity:
            return torch.zeros_like(like)
        return self.sensitivity[name] * self.uncertainty[name]

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(f"{key}.{name}", value) for key, part in self.parts.items() for name, value in part.triplet()]

    def state(self) -> dict[str, Tensor]:
        """Return the averages for a checkpoint."""
        named = {f"sensitivity/{name}": value for name, value in self.sensitivity.items()}
        return named | {f"uncertainty/{name}": value for name, value in self.uncertainty.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`, on the device of the parameters."""
        self._frozen_masks = None
        for name, parameter in self._parameters():
            for kind, averages in (("sensitivity", self.sensitivity), ("uncertainty", self.uncertainty)):
                averages.pop(name, None)
                if f"{kind}/{name}" in state:
                    averages[name] = state[f"{kind}/{name}"].to(parameter.device, copy=True)
