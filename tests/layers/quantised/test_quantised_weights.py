"""A layer is read whatever library packed it: by its own class's word, or by its products with unit vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.quantised.quantised_weights import is_quantised, logical_numbers, make_plain
from peftcli.layers.site import output_site
from peftcli.models.module_view import module_kind


class Packed(nn.Module):
    """A layer as GPTQ's and AWQ's are: codes and scales as buffers, no weight, its own product."""

    def __init__(self, inner: int, outer: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = inner, outer
        self.register_buffer("codes", torch.randint(-8, 8, (inner, outer), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(outer))
        self.register_buffer("bias", torch.randn(outer) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.codes.to(x.dtype) * self.scales)
        return y if self.bias is None else y + self.bias


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_without_a_weight_is_a_linear_and_is_read_by_its_products(bias: bool) -> None:
    torch.manual_seed(0)
    layer = Packed(1500, 6, bias)  # more columns than pass through it at a time
    assert module_kind(layer) == "linear" and is_quantised(layer)
    view = BaseLinear(layer)
    assert view.quantised and (view.in_features, view.out_features) == (1500, 6)
    torch.testing.assert_close(view.weight(), (layer.codes.float() * layer.scales).T)
    assert view.has_bias is bias


def test_parts_at_the_layer_take_no_part_in_reading_it() -> None:
    layer = Packed(8, 4)
    before = BaseLinear(layer).weight()
    output_site(layer).parts.append(nn.Identity())
    layer.register_forward_hook(lambda *_: torch.full((1,), torch.nan))
    torch.testing.assert_close(BaseLinear(layer).weight(), before)


def test_numbers_are_those_that_the_weights_stand_for() -> None:
    model = nn.Sequential(Packed(8, 4), nn.Linear(4, 2), nn.Embedding(5, 3))
    assert sum(logical_numbers(model).values()) == 8 * 4 + (4 * 2 + 2) + 5 * 3


def test_made_plain_it_computes_the_same() -> None:
    model = nn.Sequential(Packed(8, 4), nn.Tanh(), Packed(4, 2, bias=False)).eval()
    x = torch.randn(3, 8)
    before = model(x)
    make_plain(model, torch.float32)
    assert [type(each) for each in model] == [nn.Linear, nn.Tanh, nn.Linear] and not model[0].training
    torch.testing.assert_close(model(x), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_module_of_floats_with_widths_is_no_linear() -> None:
    snake = nn.Module()
    snake.in_features = snake.out_features = 4  # type: ignore[assignment]
    snake.alpha = nn.Parameter(torch.ones(4))
    assert module_kind(snake) is None


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_a_weight_of_torchao_is_read_by_its_own_word(kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Sequential(nn.Linear(32, 16))
    exact = layer[0].weight.detach().clone()
    quantization.quantize_(layer, getattr(quantization, kind)())
    view, x = BaseLinear(layer[0]), torch.randn(3, 32)
    assert view.quantised and not torch.equal(view.weight(), exact)
    torch.testing.assert_close(view.weight(), exact, atol=0.02, rtol=0.07)
    torch.testing.assert_close(x @ view.weight().T + view.bias(), layer(x), atol=1e-4, rtol=1e-3)
    assert sum(logical_numbers(layer).values()) == 32 * 16 + 16
