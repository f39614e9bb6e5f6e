"""Hypercomplex layers against the matrix built in full."""

from __future__ import annotations

import math

import pytest
import torch

from peftcli.layers.parts.phm import PhmLinear, PhmRule, phm_linear


def _built(rule: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """W[(a, p), (b, q)] = sum_i A_i[a, b] (s_i t_i)[p, q], entry by entry."""
    n, part = s.shape[:2]
    out = t.shape[2]
    w = torch.zeros(n * part, n * out)
    for i in range(n):
        for a in range(n):
            for b in range(n):
                block = rule[i, a, b] * (s[i] @ t[i])
                w[a * part : (a + 1) * part, b * out : (b + 1) * out] += block
    return w


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("n", "k", "d"), [(4, 8, 12), (2, 6, 4), (1, 5, 3)])
def test_the_kronecker_identity(n: int, k: int, d: int, rank: int) -> None:
    rule, s, t = torch.randn(n, n, n), torch.randn(n, k // n, rank), torch.randn(n, rank, d // n)
    x, bias = torch.randn(2, 5, k), torch.randn(d)
    torch.testing.assert_close(phm_linear(x, rule, s, t, bias), x @ _built(rule, s, t) + bias, atol=1e-5, rtol=1e-5)


def test_the_full_matrix_is_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak of the layer's own memory: the largest tensor that autograd saves is far below k * d."""
    layer = PhmLinear(PhmRule(4), 512, 256, 1)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        layer(torch.randn(2, 512, requires_grad=True)).sum().backward()
    assert max(sizes) < 512 * 256 / 50


def test_initial_values_are_the_official_ones() -> None:
    rule = PhmRule(8)
    assert float(rule.rule.detach().std()) == pytest.approx(1e-4, rel=0.2)
    layer = PhmLinear(rule, 256, 64, 1)
    bound = math.sqrt(2) * math.sqrt(6 / (32 + 1))  # Xavier of each (k/n, rank) piece
    assert float(layer.s.detach().abs().max()) == pytest.approx(bound, rel=0.05)
    assert not layer.bias.any()


def test_gradients_in_float64() -> None:
    shapes = [(3, 4), (2, 2, 2), (2, 2, 1), (2, 1, 3), (6,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(phm_linear, inputs)
