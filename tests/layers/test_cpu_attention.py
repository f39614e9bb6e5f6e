"""Short causal attention: torch's values and gradients, on its own path only where it fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from peftcli.layers import short_attention as module
from peftcli.layers.short_attention import ShortAttention, short_attention


def operands(groups: int, dtype: torch.dtype, length: int = 7) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 6, length, 8), (2, groups, length, 8), (2, groups, length, 8))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("groups", [6, 3, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_and_gradients_are_those_of_torch(groups: int, scale: float | None) -> None:
    tensors = operands(groups, torch.float64)
    direction = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    ours = short_attention(*tensors, scale=scale)
    theirs = F.scaled_dot_product_attention(*tensors, is_causal=True, scale=scale, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, tensors, direction), torch.autograd.grad(theirs, tensors, direction)
    )


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(short_attention, operands(3, torch.float64, length=4))


def test_bfloat16_is_as_exact_as_torch() -> None:
    wide = [t.detach().double() for t in operands(6, torch.bfloat16, 64)]
    exact = F.scaled_dot_product_attention(*wide, is_causal=True)

    def error(out: torch.Tensor) -> float:
        return float((out.detach().double() - exact).norm() / exact.norm())

    tensors = operands(6, torch.bfloat16, 64)
    assert error(short_attention(*tensors)) < 2 * error(F.scaled_dot_product_attention(*tensors, is_causal=True))


@pytest.mark.parametrize(
    ("dtype", "length", "words", "taken"),
    [
        (torch.bfloat16, 7, {"is_causal": True, "enable_gqa": True}, True),
        (torch.bfloat16, 7, {"is_causal": True, "enable_gqa": True, "dropout_p": 0.1}, False),
        (torch.bfloat16, 7, {"enable_gqa": True}, False),
        (torch.bfloat16, 7, {"attn_mask": torch.ones(7, 7, dtype=torch.bool).tril(), "enable_gqa": True}, False),
        (torch.bfloat16, module.LONGEST + 1, {"is_causal": True, "enable_gqa": True}, False),
        (torch.float32, 7, {"is_causal": True, "enable_gqa": True}, False),
    ],
)
def test_the_mode_takes_only_what_fits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int, words: dict[str, Any], taken: bool
) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return short_attention(*args, **kwargs)

    monkeypatch.setattr(module, "short_attention", counted)
    tensors = operands(3, dtype, length)
    F.scaled_dot_product_attention(*tensors, **words)
    assert not calls
    with ShortAttention():
        F.scaled_dot_product_attention(*tensors, **words)
    assert bool(calls) == taken


def test_under_autocast_float32_operands_count_as_bfloat16() -> None:
    tensors = operands(3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
        with ShortAttention():
            ours = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    assert ours.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)
    ours.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in tensors)
