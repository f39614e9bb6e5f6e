"""A frozen copy of what a run's model began with, which takes the place of the trained values for a forward pass.

`training.reference: live` computes the reference of preference tuning with it in every pass. The copy is of the values
that training moves, not of the adapter file: that one leaves out the networks that produce prefixes, and pruned ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from peftcli.distributed.sharding import drop_gathered
from peftcli.distributed.whole_tensors import put
from peftcli.protocol.attachment import Attachment


class FrozenStart:
    """The values that the model had before the first step, on its device.

    Args:
        attachment: of the live model.
        kept: the values of a run that goes on, whole; None or empty takes those that the live model has now.
    """

    def __init__(self, attachment: Attachment, kept: Mapping[str, Tensor] | None = None) -> None:
        self._attachment = attachment
        self._values = {name: own.detach().clone() for name, own in moved_values(attachment).items()}
        if kept:
            if kept.keys() != self._values.keys():
                different = sorted(kept.keys() ^ self._values.keys())
                raise KeyError(f"the values before the first step are of other tensors: {', '.join(different[:3])}")
            for name, own in self._values.items():
                put(own, kept[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return the values by name, outside of `in_place`."""
        return dict(self._values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Be the model before the first step inside: in evaluation mode, without gradients or compiled blocks."""
        model = self._attachment.model
        training = model.training
        self._exchange()
        model.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self._exchange()
            model.train(training)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the copy with the model's values, in the tensors that hold them, bit for bit."""
        drop_gathered(self._attachment.model)
        for name, own in moved_values(self._attachment).items():
            kept = self._values[name]
            other = own.detach().clone()
            own.copy_(kept)
            kept.copy_(other)
        self._attachment.forget()
        torch.clear_autocast_cache()  # which holds the values cast, and would hand them out in the next pass


def moved_values(attachment: Attachment) -> dict[str, Tensor]:
    """Return the tensors of a model that a step may change: those that are trained, and the parts' own buffers."""
    return {**attachment.trainable_parameters(), **{f"buffer {k}": v for k, v in attachment.part_buffers().items()}}
