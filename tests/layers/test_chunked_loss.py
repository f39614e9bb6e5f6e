"""The chunked head loss: equal to plain cross-entropy in value and gradient, with less kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.layers.chunked_loss import LogitTransform, head_loss, is_plain_linear

TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.25), LogitTransform(softcap=3.0), LogitTransform(0.5, 2.0)]


def plain(head: nn.Module, hidden: Tensor, targets: Tensor, transform: LogitTransform, smoothing: float) -> Tensor:
    return F.cross_entropy(transform(head(hidden)).float(), targets, reduction="sum", label_smoothing=smoothing)


@pytest.fixture
def case() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(8, 37)
    return head, torch.randn(11, 8, requires_grad=True), torch.randint(0, 37, (11,))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_value_and_gradients_equal_plain_cross_entropy(case, transform, smoothing, rows) -> None:
    head, hidden, targets = case
    expected = plain(head, hidden, targets, transform, smoothing)
    wanted = torch.autograd.grad(0.3 * expected, [hidden, head.weight, head.bias])
    loss = head_loss(head, hidden, targets, transform=transform, label_smoothing=smoothing, chunk_bytes=rows * 4 * 37)
    got = torch.autograd.grad(0.3 * loss, [hidden, head.weight, head.bias])
    torch.testing.assert_close(loss, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_gradcheck_in_float64(transform) -> None:
    torch.manual_seed(0)
    head = nn.Linear(3, 5).double()
    hidden, targets = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 4, 2, 2])

    def loss(h: Tensor) -> Tensor:
        return head_loss(head, h, targets, transform=transform, label_smoothing=0.2, chunk_bytes=40)

    assert torch.autograd.gradcheck(loss, (hidden,))


def test_frozen_head_gets_no_gradient_and_keeps_no_logits(case) -> None:
    head, hidden, targets = case
    head.requires_grad_(False)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = head_loss(head, hidden, targets)
    loss.backward()
    assert kept == [hidden.numel()]
    assert head.weight.grad is None


def test_autocast_computes_in_bfloat16_and_returns_float32(case) -> None:
    head, hidden, targets = case
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(head, hidden, targets, chunk_bytes=4 * 37)
        expected = plain(head, hidden, targets, LogitTransform(), 0.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        torch.autograd.grad(loss, hidden)[0], torch.autograd.grad(expected, hidden)[0], rtol=2e-2, atol=2e-2
    )


def test_a_head_with_a_hook_goes_through_the_module(case) -> None:
    head, hidden, targets = case
    head.register_forward_hook(lambda _module, _args, y: y + 1.5 * torch.arange(37))
    assert not is_plain_linear(head)
    for chunk_bytes in (4 * 37, 2**20):
        loss = head_loss(head, hidden, targets, chunk_bytes=chunk_bytes)
        expected = plain(head, hidden, targets, LogitTransform(), 0.0)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], torch.autograd.grad(expected, hidden)[0])


def test_no_rows_is_zero_loss_with_a_gradient(case) -> None:
    head, hidden, targets = case
    loss = head_loss(head, hidden[:0], targets[:0])
    loss.backward()
    assert loss.item() == 0.0
