"""Bottleneck layers against the formula written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli.layers.parts.bottleneck import ParallelAdapter, SerialAdapter, activation, linear_pair


def test_serial_adapter_is_h_plus_up_of_act_of_down() -> None:
    part = SerialAdapter(linear_pair(6, 3, "pfeiffer"), "gelu")
    nn.init.normal_(part.down.bias)
    nn.init.normal_(part.up.bias)
    h = torch.randn(2, 5, 6)
    hidden = h @ part.down.weight.T + part.down.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    expected = h + hidden @ part.up.weight.T + part.up.bias
    torch.testing.assert_close(part(torch.zeros(1), h), expected, atol=1e-6, rtol=1e-5)


def test_serial_adapter_with_norm_normalises_its_input_only() -> None:
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    part = SerialAdapter(linear_pair(6, 3, "pfeiffer"), "relu", norm=norm)
    z = torch.randn(4, 6)
    expected = z + torch.relu(norm(z) @ part.down.weight.T) @ part.up.weight.T
    torch.testing.assert_close(part(z, z), expected, atol=1e-6, rtol=1e-5)
    assert {name for name, _ in part.named_parameters()} == {"down.weight", "down.bias", "up.weight", "up.bias"}


def test_parallel_adapter_scales_the_change_of_the_branch_input() -> None:
    part = ParallelAdapter(linear_pair(6, 3, "pfeiffer"), "relu", scale=4.0)
    x, y = torch.randn(2, 6), torch.randn(2, 6)
    expected = y + 4.0 * torch.relu(x @ part.down.weight.T) @ part.up.weight.T
    torch.testing.assert_close(part(x, y), expected, atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    part = ParallelAdapter(linear_pair(64, 32, "pfeiffer"), "gelu", dropout=0.5)
    x = torch.randn(3, 64)
    assert not torch.equal(part(x, x), part(x, x))
    part.eval()
    assert torch.equal(part(x, x), part(x, x))


@pytest.mark.parametrize(
    ("init", "down_std", "up_std"),
    [("houlsby", 0.88e-3, 0.88e-3), ("pfeiffer", 0.02, 0.02), ("lora", 1 / 3**0.5 / 16, 0)],
)
def test_initial_weights_have_the_published_spread(init: str, down_std: float, up_std: float) -> None:
    down, up = linear_pair(256, 64, init)  # type: ignore[arg-type]  # parametrised strings
    # a normal cut at two deviations keeps 0.88 of its spread; uniform(-1/16, 1/16) has 1/16/sqrt(3)
    assert float(down.weight.detach().std()) == pytest.approx(down_std, rel=0.05)
    assert float(up.weight.detach().std()) == pytest.approx(up_std, rel=0.05)
    assert not down.bias.any()
    assert not up.bias.any()
    if init == "houlsby":
        assert float(down.weight.detach().abs().max()) <= 2e-3


def test_masters_stay_float32_and_compute_in_the_input_dtype() -> None:
    part = SerialAdapter(linear_pair(6, 3, "pfeiffer"), "relu")
    h = torch.randn(2, 6, dtype=torch.bfloat16)
    out = part(h, h)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert part.down.weight.grad is not None
    assert part.down.weight.grad.dtype == torch.float32


def test_gelu_new_is_the_tanh_form() -> None:
    x = torch.linspace(-3, 3, 7)
    expected = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(activation("gelu_new")(x), expected)
