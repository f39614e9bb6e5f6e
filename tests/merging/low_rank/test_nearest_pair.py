"""The nearest pair of a rank against torch's singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from peftcli.merging.low_rank.nearest_pair import spectrum


def matrix(shape: tuple[int, int], true_rank: int | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if true_rank is None:
        return torch.randn(shape, generator=generator)
    return torch.randn(shape[0], true_rank, generator=generator) @ torch.randn(true_rank, shape[1], generator=generator)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (300, 280)])  # the last is wide enough for a thin basis
@pytest.mark.parametrize("true_rank", [None, 7])
@pytest.mark.parametrize("rank", [3, 16])
def test_it_is_the_best_of_its_rank(shape: tuple[int, int], true_rank: int | None, rank: int) -> None:
    change = matrix(shape, true_rank)
    found = spectrum(change)
    a, b = found.pair(rank)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    assert len(a) == min(rank, true_rank or rank)
    torch.testing.assert_close(b @ a, (left[:, :rank] * values[:rank]) @ right[:rank], atol=2e-4, rtol=1e-4)
    assert found.kept(rank) / found.total == pytest.approx(float((values[:rank] ** 2).sum() / (values**2).sum()), 1e-5)
    assert torch.linalg.vector_norm(a) == pytest.approx(float(torch.linalg.vector_norm(b)), rel=1e-4)  # of one size


def test_the_rank_for_a_share_is_the_smallest() -> None:
    found = spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])))
    assert [found.rank_for(keep) for keep in (0.5, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]


def test_rounding_and_nothing_have_no_singular_values() -> None:
    assert len(spectrum(1e-8 * matrix((40, 90), None), noise=1e-8).energies) == 0
    nothing = spectrum(torch.zeros(5, 7))
    a, b = nothing.pair(2)
    assert nothing.rank_for(0.9) == 0 and a.shape == (1, 7) and b.shape == (5, 1) and not (b @ a).any()
