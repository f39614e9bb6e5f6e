"""The low-rank product: exact gradients, the plain path's numbers, little memory, and every way the loop calls it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftcli.layers.parts.lowrank import lowrank_add, plain_lowrank
from peftcli.models.anatomy import FusedSlice

SLICES = [None, FusedSlice(1, 12, 4, 4), FusedSlice(2, 6, 2, 2)]


@pytest.fixture
def plain() -> Iterator[None]:
    with plain_lowrank():
        yield


def _tensors(rows: FusedSlice | None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_out = 12 if rows is None else rows.features
    y, x = torch.randn(2, 3, 12, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    a, b = torch.randn(2, 5, dtype=dtype), torch.randn(d_out, 2, dtype=dtype)
    for tensor in (y, x, a, b):
        tensor.requires_grad_()
    return y, x, a, b


@pytest.mark.parametrize("rows", SLICES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_exact(rows: FusedSlice | None, dropout: float) -> None:
    def call(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same mask at every evaluation
        return lowrank_add(y.clone(), x, a, b, 0.7, rows, dropout)

    assert torch.autograd.gradcheck(call, _tensors(rows))


@pytest.mark.parametrize("rows", SLICES)
def test_the_value_is_the_written_out_formula(rows: FusedSlice | None) -> None:
    y, x, a, b = _tensors(rows)
    expected = y.detach().clone()
    delta = 0.7 * torch.einsum("ni,ri,or->no", x.detach().reshape(6, 5), a.detach(), b.detach()).view(2, 3, -1)
    if rows is None:
        expected += delta
    else:
        picked = [g * rows.width + rows.start + i for g in range(rows.groups) for i in range(rows.size)]
        expected[..., picked] += delta
    torch.testing.assert_close(lowrank_add(y.clone(), x, a, b, 0.7, rows), expected)


@pytest.mark.parametrize("rows", SLICES)
def test_the_plain_path_gives_the_same(rows: FusedSlice | None) -> None:
    results = []
    for on in (False, True):
        torch.manual_seed(1)
        y, x, a, b = _tensors(rows)
        with plain_lowrank(on):
            out = lowrank_add(y * 1, x, a, b, 0.7, rows)
        out.pow(2).sum().backward()
        results.append((out, y.grad, x.grad, a.grad, b.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1), (2, 3, 1), (12,)])
def test_a_gate_scales_the_product_and_is_trained(shape: tuple[int, ...]) -> None:
    y, x, a, b = _tensors(None)
    gate = torch.rand(shape, dtype=y.dtype, requires_grad=True)
    out = lowrank_add(y.clone(), x, a, b, gate)
    torch.testing.assert_close(out, y + gate * ((x @ a.T) @ b.T))
    out.sum().backward()
    assert gate.grad is not None and gate.grad.abs().sum() > 0


def test_only_x_the_factors_and_something_rank_wide_are_kept() -> None:
    kept: list[Tensor] = []
    base = nn.Linear(16, 24).requires_grad_(False)
    x = torch.randn(4, 8, 16, requires_grad=True)
    a, b = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.randn(24, 2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = base(x)
        memory = y.data_ptr()
        out = lowrank_add(y, x, a, b, 0.5, dropout=0.3)
    assert out.data_ptr() == memory, "y was copied"
    known = {x.data_ptr(), a.data_ptr(), b.data_ptr(), base.weight.data_ptr()}
    others = [tensor for tensor in kept if tensor.data_ptr() not in known]
    assert [tuple(tensor.shape) for tensor in others] == [(2, 32)]


def test_dropout_zeroes_inputs_at_its_rate_and_keeps_the_mean() -> None:
    x = torch.ones(1, 20_000)
    a, b = torch.ones(1, 20_000), torch.ones(1, 1)
    out = lowrank_add(torch.zeros(1, 1), x, a, b, 1.0, dropout=0.25)
    assert out.item() == pytest.approx(20_000, rel=0.02)
    grad_of = torch.ones(1, 20_000, requires_grad=True)
    lowrank_add(torch.zeros(1, 1), grad_of, a, b, 1.0, dropout=0.25).backward()
    assert grad_of.grad is not None
    assert (grad_of.grad == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


def test_float32_masters_serve_a_bfloat16_activation() -> None:
    y, x = torch.randn(4, 6, dtype=torch.bfloat16), torch.randn(4, 5, dtype=torch.bfloat16)
    a, b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(6, 2))
    out = lowrank_add(y.clone(), x, a, b, 0.5)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert a.grad is not None and a.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), y.float() + 0.5 * (x.float() @ a.T) @ b.T, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast_and_checkpointing_give_the_gradients_of_a_single_pass(dropout: float) -> None:
    base = nn.Linear(6, 6).requires_grad_(False)
    a, b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))

    def block(x: Tensor) -> Tensor:
        return F.gelu(lowrank_add(base(x), x, a, b, 0.5, dropout=dropout))

    grads = []
    for recompute in (False, True):
        torch.manual_seed(5)
        x = torch.randn(3, 6, requires_grad=True)
        a.grad = b.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        assert out.dtype == torch.bfloat16
        out.float().pow(2).sum().backward()
        grads.append((x.grad, a.grad, b.grad))
    torch.testing.assert_close(*grads)


def test_a_value_that_autograd_still_needs_is_not_overwritten_silently() -> None:
    x = torch.randn(3, 6, requires_grad=True)
    y = torch.sigmoid(x)  # its backward reads y
    out = lowrank_add(y, x, torch.randn(2, 6, requires_grad=True), torch.randn(6, 2), 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.usefixtures("plain")
def test_the_plain_path_leaves_y_as_it_is() -> None:
    y, x, a, b = _tensors(None)
    before = y.detach().clone()
    lowrank_add(y, x, a, b, 1.0)
    torch.testing.assert_close(y.detach(), before)


def test_it_runs_on_the_meta_device() -> None:
    y, x = torch.empty(2, 6, device="meta"), torch.empty(2, 5, device="meta")
    a, b = torch.empty(2, 5, device="meta"), torch.empty(6, 2, device="meta")
    assert lowrank_add(y, x, a, b, 1.0, dropout=0.1).shape == (2, 6)
