"""What AdaLoRA's attachment does in training and at the file: orthogonality, rank allocation, pruned tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.parts.rank_allocator import BudgetSchedule, RankAllocator, own_parameters
from peftcli.layers.parts.svd_lora import SvdDelta, orthogonality
from peftcli.methods.adalora import SUFFIXES, AdaLoraParams
from peftcli.protocol.attachment import Attachment


class AdaLoraAttachment(Attachment):
    """The SVD layers of one model, and their allocator.

    The file holds the kept ranks only; loading puts them first and leaves the others, with singular value zero, as
    they were initialised. A checkpoint holds every rank in `training_state`, because a pruned one may grow again.
    """

    def __init__(self, model: nn.Module, *, params: AdaLoraParams) -> None:
        super().__init__(model)
        self.params = params
        self._allocator: RankAllocator | None = None

    @property
    def allocator(self) -> RankAllocator:
        """The allocator over all parts, made when training first needs it."""
        if self._allocator is None:
            self._allocator = RankAllocator(self._parts(), self.params.beta1, self.params.beta2)
        return self._allocator

    def schedule(self, total_steps: int) -> BudgetSchedule:
        """Return the budget's course over a run of `total_steps`."""
        tinit, tfinal, delta_t = self.params.phases(total_steps)
        number = len(self._parts())
        initial, target = number * self.params.init_r, number * self.params.target_r
        return BudgetSchedule(initial, target, tinit, tfinal, delta_t, total_steps)

    def ranks(self) -> dict[str, int]:
        """Return the number of non-zero singular values by key."""
        return {key: int(torch.count_nonzero(part.lora_E)) for key, part in self._parts().items()}

    def extra_loss(self) -> Tensor | None:
        """Return orth_reg_weight times the mean Frobenius norm of A A^T - I and B^T B - I over all matrices."""
        if not self.params.orth_reg_weight:
            return None
        parts = self._parts().values()
        norms = [orthogonality(matrix) for part in parts for matrix in (part.lora_A, part.lora_B.T)]
        return self.params.orth_reg_weight * torch.stack(norms).mean()

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
            kept = int(torch.count_nonzero(part.lora_E)) if begun else self.params.target_r
            pruned += (full - kept) * sum(own.numel() // full for _, own in own_parameters(part))
        return super().saved_size() - pruned

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the file holds: for each place the ranks whose singular value is not zero."""
        state = super().state_dict()
        for key, part in self._parts().items():
            kept = part.lora_E.detach().flatten().nonzero().flatten()
            for suffix, dim in zip(SUFFIXES, (0, 0, 1), strict=True):
                state[f"{key}.{suffix}"] = state[f"{key}.{suffix}"].index_select(dim, kept)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy saved tensors into place, kept ranks first; strict apart from the number of ranks."""
        full = dict(state)
        for key, part in self._parts().items():
            for suffix, own in own_parameters(part):
                name = f"{key}.{suffix}"
                if name in full:
                    full[name] = _widened(full[name], own, dim=1 if suffix == "lora_B" else 0, zero=suffix == "lora_E")
        super().load_state_dict(full)

    def training_state(self) -> dict[str, Any]:
        """Return the allocator's averages and every rank in its own place, the pruned ones included."""
        ranks = {
            f"{key}.{name}": value.detach() for key, p in self._parts().items() for name, value in own_parameters(p)
        }
        return {"allocator": self.allocator.state(), "ranks": ranks}

    @torch.no_grad()
    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore `training_state`; called after `load_state_dict`, whose ranks it puts back where they were."""
        self.allocator.load_state(state["allocator"])
        for key, part in self._parts().items():
            for name, parameter in own_parameters(part):
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
