"""Gates: the formula, padding, and what each kind sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.layers.parts.gates import Gate, PaddingMask


def _fill(weight: Tensor) -> None:
    nn.init.normal_(weight)


def test_mean_leaves_padding_out() -> None:
    padding = PaddingMask()
    gate = Gate(4, "mean", padding, _fill)
    x = torch.randn(2, 5, 4)
    padding.mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    per_token = torch.sigmoid((x * gate.weight).sum(-1) + gate.bias)
    expected = torch.stack([per_token[0].mean(), per_token[1, :2].mean()]).view(2, 1, 1)
    torch.testing.assert_close(gate(x), expected)
    padding.mask = None
    torch.testing.assert_close(gate(x), per_token.mean(1).view(2, 1, 1))


def test_rows_in_front_of_the_sequence_do_not_count() -> None:
    padding = PaddingMask()
    gate = Gate(4, "mean", padding, _fill)
    x = torch.randn(2, 5, 4)
    padding.mask = torch.ones(2, 5)
    longer = torch.cat([torch.randn(2, 3, 4), x], dim=1)
    torch.testing.assert_close(gate(longer), gate(x))


def test_token_and_constant() -> None:
    x = torch.randn(2, 5, 4)
    gate = Gate(4, "token", PaddingMask(), _fill)
    torch.testing.assert_close(gate(x), torch.sigmoid((x * gate.weight).sum(-1, keepdim=True) + gate.bias))
    constant = Gate(4, "constant", PaddingMask(), _fill)
    assert [name for name, _ in constant.named_parameters()] == ["bias"]
    assert constant(x).item() == 0.5


def test_the_mask_is_that_of_the_outermost_module_that_has_it_in_two_dimensions() -> None:
    class Stack(nn.Module):
        def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return hidden

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = Stack()

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            wide = None if attention_mask is None else attention_mask[:, None, None, :]
            out: Tensor = self.stack(input_ids, attention_mask=wide)
            return out

    padding, model = PaddingMask(), Model()
    undo = padding.note_all([model, model.stack])
    mask = torch.ones(1, 2)
    model(torch.zeros(1, 2), mask)
    assert padding.mask is mask
    model(torch.zeros(1, 2))
    assert padding.mask is None
    for remove in undo:
        remove()
    model(torch.zeros(1, 2), mask)
    assert padding.mask is None
