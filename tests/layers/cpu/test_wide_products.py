"""bfloat16 products in float32: the values are those of float32 products of the same operands, rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.assembly.precision import decide_precision
from peftcli.layers.chunked_loss import head_loss
from peftcli.layers.cpu import wide_products as module
from peftcli.layers.cpu.wide_products import FEW_ROWS, WideProducts, is_widening, wide_products
from peftcli.layers.parts.lowrank import lowrank_add
from peftcli.recipe.schema import TrainingSpec
from peftcli.training.run import train

BF16 = torch.bfloat16
CPU = torch.device("cpu")
ROUNDING = {"rtol": 1e-2, "atol": 1e-2}  # of bfloat16, once


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests hold on every machine: each takes the processor for one without bfloat16."""
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(BF16)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(16, 16).tril().log().to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=0.3)


PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, ((2, 16, 8), (12, 8))),
    "linear with a bias": (lambda x, w, b: F.linear(x, w, bias=b), ((16, 8), (12, 8), (12,))),
    "addmm of a Conv1D": (torch.addmm, ((12,), (16, 8), (8, 12))),
    "addmm with a factor": (lambda c, a, b: torch.addmm(c, a, b, alpha=0.5), ((16, 12), (16, 8), (8, 12))),
    "matmul": (torch.matmul, ((2, 3, 16, 8), (3, 8, 12))),
    "@": (lambda a, b: a @ b, ((16, 8), (8, 12))),
    "@ of a vector": (lambda a, b: a @ b, ((16, 8), (8,))),
    "bmm": (torch.bmm, ((3, 16, 8), (3, 8, 12))),
    "baddbmm": (lambda c, a, b: c.baddbmm(a, b), ((3, 16, 12), (3, 16, 8), (3, 8, 12))),
    "einsum": (lambda a, b: torch.einsum("bik,bkj->bij", a, b), ((3, 16, 8), (3, 8, 12))),
    "conv1d": (F.conv1d, ((2, 8, 16), (12, 8, 3))),
    "causal attention of groups": (_attended, ((2, 4, 16, 8), (2, 2, 16, 8), (2, 2, 16, 8))),
    "attention with a mask": (_masked, ((2, 4, 16, 8), (2, 4, 16, 8), (2, 4, 16, 8))),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_product_is_that_of_float32_rounded(name: str, autocast: bool) -> None:
    function, shapes = PRODUCTS[name]
    operands = [_random(*shape) for shape in shapes]
    wide = [x.float().requires_grad_() for x in operands]
    own = [(x.float() if autocast else x).clone().requires_grad_() for x in operands]
    with torch.autocast("cpu", dtype=BF16, enabled=autocast), wide_products():
        out = function(*own)
    expected = function(*wide)
    assert out.dtype == BF16
    assert torch.equal(out, expected.to(BF16))
    weights = _random(*out.shape)
    for one, other in zip(
        torch.autograd.grad(out, own, weights), torch.autograd.grad(expected, wide, weights.float()), strict=True
    ):
        torch.testing.assert_close(one.float(), other, **ROUNDING)


def test_what_does_not_compute_in_bfloat16_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[object] = []
    monkeypatch.setattr(module, "_WIDE", dict.fromkeys(module._WIDE, lambda *args, **kwargs: replaced.append(args)))
    x, wide, double = _random(16, 8), torch.ones(12, 8), torch.ones(12, 8, dtype=torch.float64)
    with wide_products():
        F.linear(x.float(), wide)
        F.linear(x.double(), double)
        F.linear(x.to("meta"), wide.to("meta", BF16))
        with torch.autocast("cpu", dtype=BF16):
            F.linear(x.double(), double)
        with torch.autocast("cpu", dtype=torch.float16):
            F.linear(x.float(), wide)
        assert not replaced
        F.linear(x, wide.to(BF16))
    assert len(replaced) == 1


def test_only_a_processor_without_instructions_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    with wide_products(False):
        assert not is_widening()
    with wide_products():
        assert is_widening()
    assert not is_widening()
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)
    with wide_products():
        assert not is_widening()


def _kept(function: Callable[[], Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), wide_products():
        function()
    return kept


@pytest.mark.parametrize(
    "name", ["linear", "linear with a bias", "addmm of a Conv1D", "matmul", "bmm", "causal attention of groups"]
)
def test_nothing_wide_is_kept_for_the_backward_pass(name: str) -> None:
    function, shapes = PRODUCTS[name]
    operands = [_random(*shape).requires_grad_() for shape in shapes]
    kept = _kept(lambda: function(*operands))
    assert kept and all(tensor.dtype == BF16 for tensor in kept)


def test_a_frozen_weight_keeps_no_input() -> None:
    x, weight = _random(16, 8).requires_grad_(), _random(12, 8)
    kept = _kept(lambda: F.linear(x, weight))
    assert [tensor.data_ptr() for tensor in kept] == [weight.data_ptr()]


def test_few_rows_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WideLinear", None)
    with wide_products():
        F.linear(_random(1, FEW_ROWS - 1, 8), _random(12, 8))
        with pytest.raises(AttributeError):
            F.linear(_random(1, FEW_ROWS, 8), _random(12, 8))


def test_modules_of_torch_and_transformers_come_through() -> None:
    for layer in (nn.Linear(8, 12), Conv1D(12, 8)):
        layer.to(BF16)
        x = _random(2, 16, 8)
        with wide_products():
            out = layer(x)
        assert torch.equal(out, layer.float()(x.float()).to(BF16))


def test_a_low_rank_update_is_that_of_float32_rounded() -> None:
    x, y = _random(16, 8), _random(16, 12)
    a, b = _random(4, 8).float(), _random(12, 4).float()
    results = []
    for dtype in (BF16, torch.float32):
        leaves = [t.clone().to(dtype).requires_grad_() for t in (x, y)] + [t.clone().requires_grad_() for t in (a, b)]
        own = leaves[1] * 1.0  # y's memory is reused
        out = lowrank_add(own, leaves[0], leaves[2], leaves[3], 0.5)
        results.append((out.float(), *torch.autograd.grad(out.float().sum(), leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2e-2, atol=0.05)


@pytest.mark.parametrize("trained", [False, True])
def test_the_head_computes_in_float32(trained: bool) -> None:
    head = nn.Linear(8, 2100, bias=False).to(BF16).requires_grad_(trained)
    hidden, targets = _random(32, 8).requires_grad_(), torch.arange(32) * 60
    with torch.autocast("cpu", dtype=BF16):
        loss = head_loss(head, hidden, targets)
    wide = hidden.detach().float().requires_grad_()
    expected = F.cross_entropy(F.linear(wide, head.weight.float()), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (own,), (other,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, wide)
    torch.testing.assert_close(own.float(), other, **ROUNDING)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Products that were replaced, call by call."""
    calls: list[object] = []
    original = WideProducts.__torch_function__

    def counted(
        self: WideProducts, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func in module._WIDE and module._in_bfloat16(args, kwargs or {}):
            calls.append(func)
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(WideProducts, "__torch_function__", counted)
    return calls


def test_a_run_in_bfloat16_learns_the_same_with_and_without(recipe, recorder, replaced) -> None:
    words = {"model__dtype": "bfloat16", "data__val_set_size": 4, "training__max_steps": 4}
    train(recipe(name="wide", **words), reporter=recorder)
    losses, taken = list(recorder.losses), len(replaced)
    recorder.steps.clear()
    train(
        recipe(name="torch", training__fast_paths={"wide_products": False}, training__eval_strategy="no", **words),
        reporter=recorder,
    )
    assert taken > 2 * (len(replaced) - taken)  # passes before the first step and evaluations are always wide
    assert losses == pytest.approx(list(recorder.losses), rel=2e-2)


def test_derivatives_that_others_write_by_hand_are_wide_too(recipe, recorder, replaced, monkeypatch) -> None:
    derived: list[bool] = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2.0

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            derived.append(is_widening())
            return grad * 2.0

    silu = F.silu
    monkeypatch.setattr(F, "silu", lambda x, inplace=False: silu(Doubled.apply(x)))
    train(recipe(model__dtype="bfloat16", training__max_steps=1), reporter=recorder)
    assert derived and all(derived)


def test_recomputation_takes_the_same_products(recipe, recorder, replaced) -> None:
    words = {"model__dtype": "bfloat16", "training__max_steps": 3, "training__eval_strategy": "no"}
    train(recipe(name="kept", training__gradient_checkpointing=False, **words), reporter=recorder)
    kept, once = list(recorder.losses), len(replaced)
    recorder.steps.clear()
    train(recipe(name="again", training__gradient_checkpointing=True, **words), reporter=recorder)
    assert len(replaced) > 2 * once
    assert list(recorder.losses) == pytest.approx(kept, rel=1e-6)


def test_the_header_says_how_products_are_computed() -> None:
    told = {on: str(decide_precision(_spec(on), BF16, CPU, width=64)) for on in (True, False)}
    assert "no bfloat16 instructions" in told[True] and "products in fp32" in told[True]
    assert "slow" in told[False]
    assert "instructions" not in str(decide_precision(_spec(True), torch.float32, CPU, width=64))


def _spec(on: bool) -> TrainingSpec:
    return TrainingSpec.model_validate({"bf16": "auto" if on else True, "fast_paths": {"wide_products": on}})
