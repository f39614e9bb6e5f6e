"""Dropout from cheap bits: the distribution, the gradient, the same for the same seed, and only where it fits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from peftcli.layers.cpu import cpu_dropout as module
from peftcli.layers.cpu.cpu_dropout import cpu_dropout
from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.dropout_bits import draw_bits, kept_share, scaled_mask


@pytest.mark.parametrize("rate", [0.0001, 0.1, 0.5, 0.9])
def test_zeroes_the_rate_and_scales_the_rest(rate: float) -> None:
    torch.manual_seed(0)
    out = cpu_dropout(torch.ones(400_000), rate)
    zeros = float((out == 0).double().mean())
    assert abs(zeros - rate) < 5 * (rate * (1 - rate) / 400_000) ** 0.5 + 1 / 65536
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / kept_share(rate)))


def test_neighbours_are_independent() -> None:
    mask = draw_bits(torch.Size((1000, 1000)), torch.device("cpu"), 5) >= 0
    x = mask.double() - mask.double().mean()
    for along in (0, 1):
        correlation = float((x * x.roll(1, along)).mean() / x.var())
        assert abs(correlation) < 0.005


def test_the_gradient_meets_the_same_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 70, dtype=torch.float64).requires_grad_()
    out = cpu_dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)


def test_gradcheck() -> None:
    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return cpu_dropout(x, 0.4)

    assert torch.autograd.gradcheck(seeded, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))


def test_the_same_seed_draws_the_same_and_the_next_call_something_else() -> None:
    x = torch.ones(5000)
    torch.manual_seed(1)
    first, second = cpu_dropout(x, 0.5), cpu_dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(first, cpu_dropout(x, 0.5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    mask = scaled_mask(draw_bits(torch.Size((9, 5)), torch.device("cpu"), 0), 0.5, dtype)
    assert mask.dtype == dtype
    assert set(mask.float().unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("elements", "rate", "training", "inplace", "taken"),
    [
        (module.SMALLEST, 0.1, True, False, True),
        (module.SMALLEST - 1, 0.1, True, False, False),
        (module.SMALLEST, 0.0, True, False, False),
        (module.SMALLEST, 1.0, True, False, False),
        (module.SMALLEST, 0.1, False, False, False),
        (module.SMALLEST, 0.1, True, True, False),
    ],
)
def test_the_mode_takes_only_what_fits(
    monkeypatch: pytest.MonkeyPatch, elements: int, rate: float, training: bool, inplace: bool, taken: bool
) -> None:
    calls = []

    def counted(x: torch.Tensor, p: float) -> torch.Tensor:
        calls.append(1)
        return cpu_dropout(x, p)

    monkeypatch.setattr(module, "cpu_dropout", counted)
    with CpuPaths(dropout=False):
        F.dropout(torch.ones(elements), rate, training, inplace)
    assert not calls
    with CpuPaths():
        F.dropout(torch.ones(elements), rate, training, inplace)
        layer = torch.nn.Dropout(rate, inplace).train(training)
        layer(torch.ones(elements))
    assert len(calls) == 2 * taken
