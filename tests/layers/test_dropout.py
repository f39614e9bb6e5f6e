"""Dropout from hashed bits: the distribution, the gradient, the same for the same seed, and only where it fits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from peftcli.layers.cpu import cpu_paths
from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.dropout import dropout, kept_share, scaled_mask
from peftcli.layers.hashed_bits import hashed_bits, key_of, keys_tensor, with_index
from peftcli.layers.row_draws import DrawnRows, draw, drawing

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [0.0001, 0.1, 0.5, 0.9])
def test_zeroes_the_rate_and_scales_the_rest(rate: float) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(400, 1000), rate)
    zeros = float((out == 0).double().mean())
    assert abs(zeros - rate) < 5 * (rate * (1 - rate) / 400_000) ** 0.5 + 1 / 65536
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / kept_share(rate)))


def of_many_draws() -> torch.Tensor:
    """Masks of 40 draws of 25 rows of 40 tokens, (draws, rows, tokens, 25)."""
    rows = DrawnRows.of_step(0, 7, list(range(25)), [[40] * 25], [40])
    with drawing(rows):
        bits = torch.stack([draw((25, 40, 25)).bits(CPU) for _ in range(40)])
    return (bits >= 0).double()


def test_neighbours_are_independent_in_every_direction() -> None:
    mask = of_many_draws()
    x = mask - mask.mean()
    for along in range(4):
        for far in (1, 2, 3):
            assert abs(float((x * x.roll(far, along)).mean() / x.var())) < 0.005, (along, far)


def test_no_mean_over_any_direction_stands_out() -> None:
    mask = of_many_draws()
    for along in range(4):
        others = [dimension for dimension in range(4) if dimension != along]
        deviation = (mask.mean(others) - 0.5).abs().max() / (0.25 / (mask.numel() / mask.shape[along])) ** 0.5
        assert deviation < 5, along


def test_each_of_the_sixteen_bits_is_one_in_half_of_the_cases() -> None:
    bits = hashed_bits(with_index(keys_tensor([key_of(1, n) for n in range(500)], CPU), 3), 801)
    for place in range(16):
        assert abs(float(((bits.long() >> place) & 1).double().mean()) - 0.5) < 0.004, place


def test_a_part_of_a_width_is_that_of_the_whole() -> None:
    keys = keys_tensor([key_of(1, n) for n in range(3)], CPU)
    whole = hashed_bits(keys, 21)
    for first in range(6):
        torch.testing.assert_close(hashed_bits(keys, 21 - first, first), whole[:, first:], rtol=0, atol=0)


def test_the_gradient_meets_the_same_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 70, dtype=torch.float64).requires_grad_()
    out = dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)


def test_gradcheck() -> None:
    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return dropout(x, 0.4)

    assert torch.autograd.gradcheck(seeded, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_the_same_seed_draws_the_same_and_the_next_call_something_else() -> None:
    x = torch.ones(5000)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x, 0.5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    mask = scaled_mask(draw((9, 5)).bits(CPU), 0.5, dtype)
    assert mask.dtype == dtype
    assert set(mask.float().unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("rate", "training"), [(0.1, True), (0.0, True), (1.0, True), (0.1, False)])
@pytest.mark.parametrize("elements", [12, cpu_paths.SMALLEST])
def test_the_mode_takes_only_what_fits(
    monkeypatch: pytest.MonkeyPatch, elements: int, rate: float, training: bool, inplace: bool
) -> None:
    """Within a pass all that drops something is drawn by rows; elsewhere speed decides."""
    calls = []

    def counted(x: torch.Tensor, p: float) -> torch.Tensor:
        calls.append(1)
        return dropout(x, p)

    monkeypatch.setattr(cpu_paths, "drop", counted)
    x, drops = torch.ones(2, elements // 2), training and 0 < rate < 1
    with CpuPaths(dropout=False), drawing(DrawnRows.of_step(0, 0, [0, 1], [[1, 1]], [1])):
        F.dropout(x, rate, training, inplace)
    assert not calls
    with CpuPaths():
        F.dropout(x, rate, training, inplace)
        torch.nn.Dropout(rate, inplace).train(training)(x)
        assert len(calls) == 2 * (drops and not inplace and elements >= cpu_paths.SMALLEST)
    calls.clear()
    with CpuPaths(), drawing(DrawnRows.of_step(0, 0, [0, 1], [[1, 1]], [1])):
        y = torch.ones(2, elements // 2)
        out = F.dropout(y, rate, training, inplace)
    assert len(calls) == drops
    assert (out is y) or not inplace
