"""The chunked head loss: equal to plain cross-entropy in value and gradient, with less kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftcli.layers.chunked_loss import LogitTransform, head_loss, is_plain_linear
from peftcli.layers.vocabulary_blocks import BLOCK, ROWS

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


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_in_blocks_of_the_vocabulary_equals_plain_cross_entropy(bias, scale, by_row) -> None:
    """The largest logit and the targets lie in any of the blocks, the last of which is short."""
    torch.manual_seed(0)
    vocab, transform = 2 * BLOCK + 100, LogitTransform(scale=scale)
    head = nn.Linear(16, vocab, bias=bias, dtype=torch.float64).requires_grad_(False)
    hidden = (20 * torch.randn(600, 16, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, vocab, (600,))
    targets[:3] = torch.tensor([0, BLOCK, vocab - 1])
    weights = torch.rand(600, dtype=torch.float64)
    logits = transform(head(hidden))
    expected = F.cross_entropy(logits, targets, reduction="none")
    losses = head_loss(head, hidden, targets, transform=transform, by_row=by_row)
    if not by_row:
        expected, weights = expected.sum(), weights[0]
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(*(torch.autograd.grad((weights * each).sum(), hidden)[0] for each in (losses, expected)))


@pytest.mark.parametrize("by_row", [False, True])
def test_without_gradients_a_trained_head_gives_the_loss_of_a_frozen_one_to_the_bit(by_row: bool) -> None:
    """A run evaluates the head that it trains; `peft eval` loads the same head frozen."""
    torch.manual_seed(0)
    head, hidden = nn.Linear(16, BLOCK + 100), torch.randn(40, 16)
    targets = torch.randint(0, BLOCK + 100, (40,))
    with torch.no_grad():
        trained = head_loss(head, hidden, targets, by_row=by_row)
        assert torch.equal(trained, head_loss(head.requires_grad_(False), hidden, targets, by_row=by_row))


def test_a_frozen_head_on_a_cpu_never_makes_a_tensor_of_the_whole_vocabulary() -> None:
    head = nn.Linear(8, 4 * BLOCK).requires_grad_(False)
    hidden, targets = torch.randn(ROWS + 1, 8, requires_grad=True), torch.zeros(ROWS + 1, dtype=torch.long)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, Tensor) and out.is_floating_point() else 0)
            return out

    with Sizes():
        head_loss(head, hidden, targets)
    assert max(sizes) == ROWS * BLOCK


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


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("count", "certain"), [(1, 20), (1, 75), (1000, 20)])
def test_float16_gradients_are_those_of_float64_at_any_loss_scale(count, certain, trained) -> None:
    """A factor beyond float16's range, and gradients that are below it without the factor (of about 1e-9)."""
    torch.manual_seed(0)
    head = nn.Linear(64, 300, bias=False).requires_grad_(trained)
    hidden, targets = torch.randn(7, 64), torch.randint(0, 300, (7,))
    with torch.no_grad():
        head.weight.copy_(head.weight.half())
        hidden.copy_((head.weight[targets] * certain).half())
    exact_head, exact = nn.Linear(64, 300, bias=False).double(), hidden.double().requires_grad_()
    exact_head.load_state_dict(head.double().state_dict())
    factor = 65_536.0 / count
    (F.cross_entropy(exact_head(exact), targets, reduction="sum") * factor).backward()
    half = hidden.half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = head_loss(head.float(), half, targets, chunk_bytes=4 * 300 * 3)
    (loss * factor).backward()
    pairs = [(half.grad, exact.grad), *([(head.weight.grad, exact_head.weight.grad)] if trained else [])]
    for rough, right in pairs:
        assert rough is not None and right is not None
        assert (rough.double() - right).norm() < 0.05 * right.norm()  # the logits themselves are in float16


def test_a_chunk_holds_at_least_the_rows_asked_for() -> None:
    """Whatever they take: 256 bytes hold one row of this head, and few rows read its weight too often on a card."""
    head, hidden, targets = nn.Linear(16, 64), torch.randn(40, 16), torch.randint(0, 64, (40,))
    counted: list[int] = []

    class Counts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.addmm.default:
                counted.append(len(args[1]))
            return func(*args, **(kwargs or {}))

    with Counts():
        few = head_loss(head, hidden, targets, chunk_bytes=256)
        many = head_loss(head, hidden, targets, chunk_bytes=256, least_rows=32)
    assert counted == [1] * 40 + [32, 8]
    torch.testing.assert_close(few, many)
