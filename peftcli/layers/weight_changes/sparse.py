"""SHiRA's layer: a sparse change of the weight, trained at places that are chosen once (Bhardwaj et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.weight_changes.weight_delta import WeightDelta


def random_places(d_out: int, d_in: int, count: int, seed: int | None) -> Tensor:
    """Return places drawn without repetition, (2, count) of int32: rows and columns, in the order of the matrix.

    HF peft draws the same from the same seed; without one it takes torch's own default, which is always the same.
    """
    generator = torch.Generator("cpu")
    if seed is not None:
        generator.manual_seed(seed)
    chosen = torch.randperm(d_out * d_in, generator=generator)[:count].sort().values
    return as_places(chosen, d_in)


def as_places(flat: Tensor, d_in: int) -> Tensor:
    """Return positions in the flattened matrix as rows and columns, (2, count) of int32."""
    return torch.stack([flat // d_in, flat % d_in]).int()


def why_no_places(places: Tensor, d_out: int, d_in: int) -> str | None:
    """Return why saved places are none of a weight (d_out, d_in), or None."""
    rows, columns = places.long()
    inside = (rows >= 0) & (rows < d_out) & (columns >= 0) & (columns < d_in)
    return None if bool(inside.all()) else f"shira_indices has places outside its weight, which is {d_out} x {d_in}"


class SparseDelta(WeightDelta):
    """y + S x, with S zero but at the chosen places.

    Args:
        base: the frozen projection, or the rows of a fused one.
        places: (2, count) of int32, rows and columns.
        largest: take the places of the weight's largest values instead, once its values are there.
        random: start from random values, no identity; for tests.
    """

    def __init__(self, base: BaseLinear, places: Tensor, *, largest: bool = False, random: bool = False) -> None:
        super().__init__(base)
        self.largest = largest
        count = places.shape[1]
        values = torch.zeros(count, device=base.device)
        if random and base.device.type != "meta":
            values = torch.randn(count).to(base.device)
        self.shira_weight = nn.Parameter(values)
        self.register_buffer("shira_indices", places.to(base.device, copy=True), persistent=False)

    shira_indices: Tensor

    def delta(self) -> Tensor:
        """Return S, (d_out, d_in), float32."""
        empty = self.shira_weight.new_zeros(self.base.out_features, self.base.in_features)
        rows, columns = self.shira_indices.long()
        return empty.index_put((rows, columns), self.shira_weight)

    @torch.no_grad()
    def start_from_base(self) -> None:
        """Choose the places of the largest values of the weight, where that is asked for."""
        if self.largest:
            weight = self.base.weight()
            flat = weight.abs().flatten().topk(self.shira_indices.shape[1]).indices.sort().values
            self.shira_indices.copy_(as_places(flat, weight.shape[1]))

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the values and their places."""
        return {"shira_weight": self.shira_weight, "shira_indices": self.shira_indices}
