"""Every kind of projection through one view."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.layers.base_linear import BaseLinear
from peftcli.models.anatomy import FusedSlice


def test_a_linear_is_itself() -> None:
    linear = nn.Linear(5, 7)
    view = BaseLinear(linear)
    assert (view.in_features, view.out_features, view.has_bias) == (5, 7, True)
    torch.testing.assert_close(view.weight(), linear.weight.detach())
    assert view.bias() is linear.bias


def test_a_conv1d_is_seen_as_out_by_in() -> None:
    conv = Conv1D(7, 5)
    view = BaseLinear(conv)
    x = torch.randn(3, 5)
    assert (view.in_features, view.out_features) == (5, 7)
    torch.testing.assert_close(x @ view.weight().T + view.bias(), conv(x))


@pytest.mark.parametrize("rows", [FusedSlice(1, 12, 4, 4), FusedSlice(2, 6, 2, 2)])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_slice_is_the_rows_of_its_role(rows: FusedSlice, kind: str) -> None:
    fused = nn.Linear(5, 12) if kind == "linear" else Conv1D(12, 5)
    nn.init.normal_(fused.bias)
    view = BaseLinear(fused, rows)
    x = torch.randn(3, 5)
    assert view.out_features == 4
    torch.testing.assert_close(x @ view.weight().T + view.bias(), rows.take(fused(x)))


def test_a_bfloat16_weight_is_read_in_float32() -> None:
    view = BaseLinear(nn.Linear(4, 4, bias=False, dtype=torch.bfloat16))
    assert view.weight().dtype == torch.float32
    assert not view.has_bias and view.bias() is None


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_weight_is_dequantised_to_what_it_computes(bits: int) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    linear = nn.Linear(64, 32, bias=False)
    if bits == 4:
        quantised = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    else:
        quantised = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    quantised.load_state_dict(copy.deepcopy(linear.state_dict()))
    quantised = quantised.to("cpu")
    x = torch.randn(4, 64)
    quantised(x)
    view = BaseLinear(quantised)
    assert view.quantised and view.weight().shape == (32, 64)
    tolerance = {4: 1e-5, 8: 3e-2}[bits]  # the 8-bit product also rounds its activations
    torch.testing.assert_close(x @ view.weight().T, quantised(x), atol=tolerance, rtol=1e-3)
    torch.testing.assert_close(view.weight(), linear.weight.detach(), atol=0.05, rtol=0.5)


def test_what_is_no_projection_is_refused() -> None:
    with pytest.raises(TypeError, match="LayerNorm is no linear projection"):
        BaseLinear(nn.LayerNorm(3))
