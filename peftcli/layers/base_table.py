"""A view of a frozen embedding: what a part that lies below it reads of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.distributed.whole_tensors import whole
from peftcli.layers.part_device import device_beside


class BaseTable:
    """A frozen lookup table W: (rows, width).

    Args:
        module: the live embedding; the view follows it to another device or dtype.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.rows, self.width = self._stored().shape

    @property
    def device(self) -> torch.device:
        """Where the table is, or comes to be."""
        return device_beside(self._stored())

    @property
    def padding_idx(self) -> int | None:
        """The row that gets no gradient, if there is one."""
        return self.module.padding_idx if isinstance(self.module, nn.Embedding) else None

    @property
    def scale(self) -> float | Tensor:
        """The factor that the module multiplies its rows by (Gemma, BART), else 1."""
        factor = getattr(self.module, "embed_scale", None)
        return factor if isinstance(factor, (float, int, Tensor)) else 1.0

    @torch.no_grad()
    def weight(self) -> Tensor:
        """Return the table, (rows, width), float32; every process that has a share of it must call this."""
        return whole(self._stored()).float()

    def rows_at(self, ids: Tensor) -> Tensor:
        """Return rows of the table, (..., width), float32, without the module's own factor.

        Gradients reach the table where it is trained, too.
        """
        return F.embedding(ids, self._live(), padding_idx=self.padding_idx).float()

    def _stored(self) -> Tensor:
        return self._live().detach()

    def _live(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # nn.Module types attributes as Tensor | Module
        return weight
