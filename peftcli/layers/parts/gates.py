"""Gates: one number in (0, 1) for what a part adds, computed from what the part sees (UniPELT, Mao et al. 2021).

sigmoid(w^T x + b). In a bidirectional encoder it is averaged over a sequence's tokens, padding left out, so that a
row's result does not depend on its batch (the official code averages over padding too). In a decoder every token
has its own: a mean over the sequence would include later tokens, and generation with a cache would differ from that
without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

Kind = Literal["mean", "token", "constant"]


class PaddingMask:
    """The 2-D attention mask of the forward pass that is running, noted by hooks on the modules that receive it."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def note(self, module: nn.Module) -> RemovableHandle | None:
        """Hook a module that takes `attention_mask`; None if it does not."""
        names = list(inspect.signature(module.forward).parameters)
        if "attention_mask" not in names:
            return None

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask = {**dict(zip(names, args, strict=False)), **kwargs}.get("attention_mask")
            if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
                self.mask = mask  # a deeper module gets it in four dimensions, or None where nothing is hidden

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def note_all(self, modules: Iterable[nn.Module]) -> list[Callable[[], None]]:
        """Hook the outermost modules first; return what takes the hooks away."""
        handles = [self.note(module) for module in modules]
        return [handle.remove for handle in handles if handle is not None]


class Gate(nn.Module):
    """A gate in place of a part's scale.

    Args:
        width: of what it sees.
        kind: `mean` over a sequence's tokens, `token` for one value per token, `constant` where what the part does
            cannot differ between tokens of a decoder: then only the bias is learnt.
        padding: where `mean` finds out which tokens count.
        fill: initialises the weight.
    """

    def __init__(self, width: int, kind: Kind, padding: PaddingMask, fill: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.kind = kind
        self._padding = padding
        self.weight: nn.Parameter | None = None
        if kind != "constant":
            self.weight = nn.Parameter(torch.empty(1, width, dtype=torch.float32))
            fill(self.weight)
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    @property
    def mixes_positions(self) -> bool:
        """Whether a token's gate depends on other tokens."""
        return self.kind == "mean"

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate for x: (batch, seq, width).

        Returns:
            (batch, 1, 1) by mean, (batch, seq, 1) by token, (1, 1, 1) if constant; in x's dtype.
        """
        if self.weight is None:
            return torch.sigmoid(self.bias).to(x.dtype).view(1, 1, 1)
        gate = torch.sigmoid(functional.linear(x.float(), self.weight, self.bias))
        if self.kind == "token":
            return gate.to(x.dtype)
        return _mean(gate, self._padding.mask).to(x.dtype)


def _mean(gate: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the sequence, (batch, 1, 1), of tokens that the mask shows."""
    if mask is None or mask.shape[0] != gate.shape[0] or mask.shape[1] > gate.shape[1]:
        return gate.mean(dim=1, keepdim=True)
    # the route `padded_rows` puts a prefix in front as rows of the input
    gate = gate[:, gate.shape[1] - mask.shape[1] :]
    weight = mask.to(gate.dtype).unsqueeze(-1)
    return (gate * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
