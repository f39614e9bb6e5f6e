"""The principal components of vectors that come batch by batch: incremental PCA (Ross et al. 2008).

As in HF peft's EVA: each batch is stacked below the components so far, times their singular values, and decomposed by
a randomised SVD whose random matrix is drawn from a fixed seed on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from peftcli.layers.seeded import seeded

ITERATIONS = 4
SEED = 42  # HF peft's: the same rows give the same components


class RunningComponents:
    """The first components of everything that was added.

    Args:
        count: how many.
        threshold: cosine between a component and what it was before the last batch, from which it counts as found.

    Attributes:
        components: (count, width), of unit length, the largest first; None before the first batch.
        ratios: (count,), the share of all variance that each component explains.
    """

    def __init__(self, count: int, threshold: float) -> None:
        self.count, self.threshold = count, threshold
        self.components: Tensor | None = None
        self.ratios = self._values = self._mean = torch.empty(0)
        self._seen = 0
        self._still = torch.zeros(count, dtype=torch.bool)
        self._variance: Tensor | float = 0.0

    def found(self, count: int) -> bool:
        """Return whether none of the first components moved beyond the threshold in the last batch."""
        return bool(self._still[:count].all())

    def add(self, batch: Tensor) -> None:
        """Take a batch of vectors, (n, width), into account; one of fewer vectors than components is left out."""
        if len(batch) < self.count:
            return
        batch = batch.float()
        mean = batch.mean(dim=0, dtype=self._wide(batch))
        centred, total = batch - mean, self._seen + len(batch)
        self._variance = self._variance + centred.square().sum()
        stacked = centred.float()
        if self.components is not None:
            moved = (self._seen / total * len(batch)) ** 0.5 * (self._mean - mean)
            rows = [self._values.unsqueeze(1) * self.components, stacked, moved.unsqueeze(0)]
            stacked = torch.cat([each.to(moved) for each in rows])
            mean = (self._mean * self._seen + mean * len(batch)) / total
            self._variance = self._variance + moved.square().sum()
        values, right = _decomposed(stacked, 2 * self.count)
        right = right[: self.count]
        if self.components is not None:
            cosines = functional.cosine_similarity(right, self.components)
            self._still = cosines >= self.threshold
        self.components, self._values = right, values[: self.count]
        self.ratios = self._values.square() / self._variance
        self._mean, self._seen = mean, total

    @staticmethod
    def _wide(batch: Tensor) -> torch.dtype:
        """Return what the means are kept in, and so all batches but the first are decomposed in: HF peft's float64."""
        return torch.float32 if batch.device.type == "mps" else torch.float64


def _decomposed(matrix: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values and their right vectors, (width, d), each with its largest entry positive.

    Halko et al. 2009, algorithm 4.4, which torch.svd_lowrank takes, too.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    width = min(width, tall.shape[1])
    with seeded(SEED):
        drawn = torch.randn(tall.shape[1], width, dtype=tall.dtype)
    basis = torch.linalg.qr(tall @ drawn.to(tall)).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(tall @ torch.linalg.qr(tall.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ tall, full_matrices=False)
    vectors = right if tall is matrix else (basis @ left).T
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return values, vectors * largest.sign()
