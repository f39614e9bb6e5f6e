"""The torch half of AdaLoRA: the orthogonality term, rank allocation, and tensors without their pruned ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peftcli.layers.parts.rank_allocator import BudgetSchedule, RankAllocator
from peftcli.layers.parts.svd_lora import TRIPLET, SvdDelta, orthogonalities
from peftcli.protocol.attachment import Attachment


@dataclass(kw_only=True)
class AdaLoraAttachment(Attachment):
    """The SVD parts of one model, and their allocator.

    The file holds the kept ranks only; loading puts them first and leaves the others, with singular value zero, as
    they were initialised. A checkpoint holds every rank in `training_state`, because a pruned one may grow again.

    Args:
        init_r: rank of every matrix at the start.
        target_r: mean rank at the end.
        betas: decay of the averages of sensitivity and of uncertainty.
        orthogonality: weight of the orthogonality term.
        phases: from the optimizer steps of a run to tinit, tfinal and deltaT.
    """

    init_r: int
    target_r: int
    betas: tuple[float, float]
    orthogonality: float
    phases: Callable[[int], tuple[int, int, int]]
    _allocator: RankAllocator | None = field(default=None, init=False)

    @property
    def allocator(self) -> RankAllocator:
        """The allocator over all parts, made when training first needs it."""
        if self._allocator is None:
            self._allocator = RankAllocator(self._parts(), *self.betas)
        return self._allocator

    def schedule(self, total_steps: int) -> BudgetSchedule:
        """Return the budget's course over a run of `total_steps`."""
        tinit, tfinal, delta_t = self.phases(total_steps)
        number = len(self._parts())
        return BudgetSchedule(number * self.init_r, number * self.target_r, tinit, tfinal, delta_t, total_steps)

    def ranks(self) -> dict[str, int]:
        """Return the number of non-zero singular values by key."""
        return {key: int(torch.count_nonzero(part.lora_E)) for key, part in self._parts().items()}

    def extra_loss(self) -> Tensor | None:
        """Return the mean Frobenius norm of A A^T - I and B^T B - I over all matrices, times its weight."""
        if not self.orthogonality:
            return None
        parts = self._parts().values()
        matrices = [matrix for part in parts for matrix in (part.lora_A, part.lora_B.T)]
        return self.orthogonality * orthogonalities(matrices).mean()

    def after_optimizer_step(self, step: int, total_steps: int) -> None:
        """Update importance and prune, by the schedule of a run of `total_steps`."""
        self.allocator.step(step, self.schedule(total_steps))

    def settled(self, step: int, total_steps: int) -> bool:
        """Return whether the ranks are down to the final budget for good."""
        return step > total_steps - self.schedule(total_steps).tfinal or step == total_steps

    def saved_size(self) -> int:
        """Return the numbers in the file: of the ranks kept, or of target_r everywhere before training has begun."""
        parts = list(self._parts().values())
        begun = not any(part.lora_E.is_meta for part in parts) and any(bool(part.lora_E.any()) for part in parts)
        pruned = 0
        for part in parts:
            full = part.lora_E.numel()
            kept = int(torch.count_nonzero(part.lora_E)) if begun else self.target_r
            pruned += (full - kept) * sum(own.numel() // full for _, own in part.triplet())
        return super().saved_size() - pruned

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the file holds: for each place the ranks whose singular value is not zero."""
        state = super().state_dict()
        for key, part in self._parts().items():
            kept = part.lora_E.detach().flatten().nonzero().flatten()
            for suffix, dim in zip(TRIPLET, (0, 0, 1), strict=True):
                state[f"{key}.{suffix}"] = state[f"{key}.{suffix}"].index_select(dim, kept)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy saved tensors into place, kept ranks first; strict apart from the number of ranks."""
        full = dict(state)
        for key, part in self._parts().items():
            for suffix, own in part.triplet():
                name = f"{key}.{suffix}"
                if name in full:
                    full[name] = _widened(full[name], own, dim=1 if suffix == "lora_B" else 0, zero=suffix == "lora_E")
        super().load_state_dict(full)

    def training_state(self) -> dict[str, Any]:
        """Return the allocator's averages and every rank in its own place, the pruned ones included."""
        ranks = {f"{key}.{name}": value.detach() for key, p in self._parts().items() for name, value in p.triplet()}
        return {"allocator": self.allocator.state(), "ranks": ranks}

    @torch.no_grad()
    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore `training_state`; called after `load_state_dict`, whose ranks it puts back where they were."""
        self.allocator.load_state(state["allocator"])
        for key, part in self._parts().items():
            for name, parameter in part.triplet():
                parameter.copy_(state["ranks"][f"{key}.{name}"])

    def _parts(self) -> dict[str, SvdDelta]:
        return {placed.key: placed.part for placed in self.placed if isinstance(placed.part, SvdDelta)}


def _widened(saved: Tensor, own: Tensor, *, dim: int, zero: bool) -> Tensor:
    """Return `saved` filled up with `own`'s ranks behind it, zeros if asked; as it is where it does not fit."""
    kept = saved.shape[dim] if saved.ndim == own.ndim else own.shape[dim]
    if kept >= own.shape[dim] or saved.shape[1 - dim] != own.shape[1 - dim]:
        return saved
    rest = own.detach().narrow(dim, kept, own.shape[dim] - kept)
    return torch.cat([saved.to(rest), torch.zeros_like(rest) if zero else rest], dim)
