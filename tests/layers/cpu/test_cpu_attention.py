"""Attention by products: torch's values and gradients, on its own path only where it fits."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from peftcli.layers.cpu import cpu_attention as module
from peftcli.layers.cpu.attention_call import AttentionCall
from peftcli.layers.cpu.cpu_attention import fits
from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.dropout import scaled_mask
from peftcli.layers.joined_documents import Documents
from peftcli.layers.row_draws import DrawnRows, draw, drawing


def cpu_attention(*args: Any, **words: Any) -> torch.Tensor:
    return module.cpu_attention(AttentionCall(*args, **words))


def operands(groups: int, dtype: torch.dtype, length: int = 7, keys: int | None = None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    keys = keys or length
    shapes = ((2, 6, length, 8), (2, groups, keys, 8), (2, groups, keys, 8))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def padding(keys: int, length: int = 1) -> torch.Tensor:
    """The second row's last keys are padding."""
    mask = torch.ones(2, 1, length, keys, dtype=torch.bool)
    mask[1, ..., -3:] = False
    return mask


def masks() -> dict[str, torch.Tensor | None]:
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    added = torch.zeros(2, 1, 7, 7, dtype=torch.float64).masked_fill(~padding(7, 7), -torch.inf)
    return {
        "none": None,
        "causal": causal,
        "padding": padding(7),
        "padding of each position": padding(7, 7),
        "added": added + 0.1 * torch.randn(2, 1, 7, 7, dtype=torch.float64),
        "nothing to see": padding(7, 7) & (torch.arange(7) != 2)[:, None],
    }


@pytest.mark.parametrize("groups", [6, 3, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", [*masks(), "is_causal"])
def test_values_and_gradients_are_those_of_torch(groups: int, scale: float | None, mask: str) -> None:
    tensors = operands(groups, torch.float64)
    direction = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    words: dict[str, Any] = {"is_causal": True} if mask == "is_causal" else {"attn_mask": masks()[mask]}
    words |= {"scale": scale, "enable_gqa": True}
    ours = cpu_attention(*tensors, **words)
    theirs = F.scaled_dot_product_attention(*tensors, **words)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, tensors, direction), torch.autograd.grad(theirs, tensors, direction)
    )


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda *t: cpu_attention(*t, is_causal=True), operands(3, torch.float64, length=4))


def test_gradcheck_with_dropout_and_padding() -> None:
    def seeded(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return cpu_attention(*tensors, padding(5), 0.3)

    assert torch.autograd.gradcheck(seeded, operands(6, torch.float64, 4, 5))


def test_dropout_is_the_formula() -> None:
    query, key, value = operands(6, torch.float64, 5, 9)
    rows = DrawnRows.of_step(0, 0, [3, 8], [[5, 5]], [5])
    with drawing(rows):
        ours = cpu_attention(query, key, value, padding(9), 0.25)
    with drawing(rows):
        mask = scaled_mask(draw((2, 6, 1, 5, 9)).bits(query.device).view(2, 6, 5, 9), 0.25, torch.float64)
    assert 0.1 < float((mask == 0).double().mean()) < 0.4
    scores = (query @ key.mT / 8**0.5).masked_fill(~padding(9), -torch.inf)
    torch.testing.assert_close(ours, (scores.softmax(-1) * mask) @ value)


def test_dropout_is_right_on_average() -> None:
    tensors = operands(3, torch.float32)
    torch.manual_seed(0)
    mean = sum(cpu_attention(*tensors, dropout_p=0.5, enable_gqa=True).detach() for _ in range(3000)) / 3000
    exact = F.scaled_dot_product_attention(*tensors, enable_gqa=True).detach()
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.1)


def test_bfloat16_is_as_exact_as_torch() -> None:
    wide = [t.detach().double() for t in operands(6, torch.bfloat16, 64)]
    exact = F.scaled_dot_product_attention(*wide, is_causal=True)

    def error(out: torch.Tensor) -> float:
        return float((out.detach().double() - exact).norm() / exact.norm())

    tensors = operands(6, torch.bfloat16, 64)
    ours = cpu_attention(*tensors, is_causal=True)
    assert error(ours) < 2 * error(F.scaled_dot_product_attention(*tensors, is_causal=True))


BIAS = torch.zeros(7, 7, requires_grad=True)


@pytest.mark.parametrize(
    ("dtype", "length", "words", "taken"),
    [
        (torch.bfloat16, 7, {"is_causal": True}, True),
        (torch.bfloat16, 7, {"is_causal": True, "dropout_p": 0.1}, True),
        (torch.bfloat16, 7, {}, False),
        (torch.bfloat16, 7, {"attn_mask": torch.ones(7, 7, dtype=torch.bool).tril()}, True),
        (torch.bfloat16, module.LONGEST + 1, {"is_causal": True}, False),
        (torch.float32, 7, {"is_causal": True}, False),
        (torch.float32, 7, {"dropout_p": 0.1}, True),
        (torch.float32, 7, {"dropout_p": 0.1, "attn_mask": padding(7)}, True),
        (torch.float32, 7, {"dropout_p": 0.1, "attn_mask": BIAS}, False),
        (torch.float32, 7, {"dropout_p": 0.1, "attn_mask": torch.zeros(2, 6, 7, 7)}, False),
    ],
)
def test_the_mode_takes_only_what_fits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int, words: dict[str, Any], taken: bool
) -> None:
    calls, original = [], module.cpu_attention

    def counted(call: AttentionCall) -> torch.Tensor:
        calls.append(1)
        return original(call)

    monkeypatch.setattr(module, "cpu_attention", counted)
    tensors, words = operands(3, dtype, length), {**words, "enable_gqa": True}
    F.scaled_dot_product_attention(*tensors, **words)
    with CpuPaths(attention=False):
        F.scaled_dot_product_attention(*tensors, **words)
    assert not calls
    with CpuPaths():
        F.scaled_dot_product_attention(*tensors, **words)
    assert bool(calls) == taken == fits(AttentionCall(*tensors, **words))


def test_under_autocast_float32_operands_count_as_bfloat16() -> None:
    tensors = operands(3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
        with CpuPaths():
            ours = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    assert ours.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)
    ours.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in tensors)


def test_a_mask_does_not_outlive_its_context() -> None:
    gc.disable()  # what holds itself would stay until a collection, and with it a mask of all pairs of positions
    try:
        q, k, v = (torch.randn(1, 2, 7, 8) for _ in range(3))
        mask = torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
        with CpuPaths(documents=DocumentAttention(Documents((7,), (0,)))):
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        gone = weakref.ref(mask)
        del mask
        assert gone() is None
    finally:
        gc.enable()
