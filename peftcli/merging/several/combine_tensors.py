"""The arithmetic of combining changes of one tensor: task arithmetic, TIES, DARE and magnitude pruning.

- Task arithmetic: the weighted sum (Ilharco et al. 2023, arXiv:2212.04089).
- TIES (Yadav et al. 2023, arXiv:2306.01708): keep the largest values of each; at each place, elect a sign by the sum of
  what is kept; take the mean of the values that have it.
- DARE (Yu et al. 2024, arXiv:2311.03099): keep a random share of each and divide it by that share.

The weights multiply after the election, as in HF peft; so do its ways with ties: a sum of zero elects the plus sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from peftcli.merging.several.combination import Combination, SignMethod


def combine_tensors(
    tensors: Sequence[Tensor], weights: Sequence[float], how: Combination, generator: torch.Generator
) -> Tensor:
    """Return one tensor for several of one shape, each an adapter's change of one weight, or one of its factors.

    Args:
        tensors: float32; they may be changed in place.
        weights: one for each.
        how: the combination; its rank does not matter here.
        generator: of the random shares, drawn one tensor after the other.
    """
    density = how.density
    if density is not None and density < 1:
        for tensor in tensors:
            if how.pruning == "magnitude":
                keep_largest_(tensor, density)
            else:
                keep_random_(tensor, density, generator)
    if how.elects:
        return _mean_of_elected(tensors, weights, how.majority_sign_method)
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def draws_of(name: str, seed: int) -> torch.Generator:
    """Return the generator of one tensor's random shares: the same whatever else is combined, and in any order."""
    return torch.Generator().manual_seed(crc32(f"{seed}:{name}".encode()))


def keep_largest_(tensor: Tensor, density: float) -> None:
    """Set all but the int(density * numel) values of the largest magnitude to zero."""
    flat = tensor.view(-1)
    kept = torch.topk(flat.abs(), int(density * flat.numel()), sorted=False).indices
    values = flat[kept]
    flat.zero_()
    flat[kept] = values


def keep_random_(tensor: Tensor, density: float, generator: torch.Generator) -> None:
    """Keep each value with the probability `density`, divided by it; the others become zero."""
    mask = torch.bernoulli(torch.full(tensor.shape, density), generator=generator)
    tensor.mul_(mask.to(tensor)).div_(density)


def _mean_of_elected(tensors: Sequence[Tensor], weights: Sequence[float], method: SignMethod) -> Tensor:
    votes = torch.zeros_like(tensors[0])
    for tensor in tensors:
        votes += tensor if method == "total" else tensor.sign()
    elected = torch.where(votes >= 0, 1.0, -1.0)
    total, counted = torch.zeros_like(votes), torch.zeros_like(votes)
    for tensor, weight in zip(tensors, weights, strict=True):
        agrees = tensor.sign() == elected
        total += weight * tensor * agrees
        counted += agrees
    return total / counted.clamp_(min=1.0)
