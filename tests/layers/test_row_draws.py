"""Draws by (seed, step, row): the same whatever rows are beside, padded, joined, packed or recomputed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.dropout import dropout
from peftcli.layers.joined_documents import Documents
from peftcli.layers.row_draws import DrawnRows, draw, drawing, lengths_for, same_again

CPU = torch.device("cpu")
LENGTHS = {3: 5, 8: 2, 11: 4}
"""Number of each row, and its tokens."""


def rows(*numbers: int, step: int = 2, width: int | None = None, joined: bool = False) -> DrawnRows:
    lengths = [LENGTHS[number] for number in numbers]
    return DrawnRows.of_step(0, step, numbers, [lengths], [width or max(lengths)], joined)


def bits_of(given: DrawnRows, *shapes: tuple[int, ...]) -> list[Tensor]:
    with drawing(given):
        return [draw(shape).bits(CPU).clone() for shape in shapes]


def test_a_row_has_its_bits_beside_any_other_and_with_any_padding() -> None:
    (alone,) = bits_of(rows(8), (1, 2, 6))
    (beside,) = bits_of(rows(3, 8, 11), (3, 5, 6))
    assert torch.equal(alone[0], beside[1, :2])
    assert not torch.equal(beside[0], beside[1])


def test_flattened_and_joined_tokens_have_the_bits_of_their_rows() -> None:
    order = (3, 8, 11)
    (padded,) = bits_of(rows(*order), (3, 5, 6))
    (flat,) = bits_of(rows(*order), (15, 6))
    assert torch.equal(flat.view(3, 5, 6), padded)
    expected = torch.cat([padded[place, : LENGTHS[number]] for place, number in enumerate(order)])
    joined, flat = bits_of(rows(*order, joined=True), (1, 11, 6))[0], bits_of(rows(*order, joined=True), (11, 6))[0]
    assert torch.equal(joined[0], expected) and torch.equal(flat, expected)


def test_probabilities_and_pooled_states_belong_to_rows_too() -> None:
    alone, beside = bits_of(rows(8), (1, 4, 2, 2), (1, 6)), bits_of(rows(3, 8), (2, 4, 5, 5), (2, 6))
    assert torch.equal(alone[0][0], beside[0][1, :, :2, :2])
    assert torch.equal(alone[1][0], beside[1][1])


def test_steps_seeds_and_draws_differ_and_a_table_is_the_same_for_all_rows() -> None:
    first, second, table = bits_of(rows(3), (1, 5, 6), (1, 5, 6), (7, 6))
    assert not torch.equal(first, second)
    assert not torch.equal(first, bits_of(rows(3, step=3), (1, 5, 6))[0])
    assert torch.equal(table, bits_of(rows(8, 11), (2, 4, 6), (2, 4, 6), (7, 6))[2])


def test_how_many_other_draws_there_are_moves_none_of_the_rows() -> None:
    """Experts see a number of tokens that depends on the rows."""
    few, many = bits_of(rows(3), (1, 5, 6), (1, 5, 6)), bits_of(rows(3), (1, 5, 6), (2, 6), (17, 6), (1, 5, 6))
    assert torch.equal(few[1], many[3])
    with drawing(rows(3)):
        draw((17, 6))
        shared = draw((1, 5, 6), shared=True).bits(CPU)
    with drawing(rows(8)):
        assert torch.equal(draw((1, 5, 6), shared=True).bits(CPU), shared)


def attention(given: DrawnRows, tensors: tuple[Tensor, ...], documents: tuple[int, ...] = ()) -> Tensor:
    """Return attention with dropout, causal within documents; and the bits of the next draw of the first token."""
    paths = CpuPaths(documents=DocumentAttention(Documents(documents, (0,) * len(documents))) if documents else None)
    words: dict[str, object] = {"is_causal": True}
    if documents:
        number = torch.arange(len(documents)).repeat_interleave(torch.tensor(documents))
        words = {
            "attn_mask": ((number[:, None] == number) & torch.ones(len(number), len(number)).tril().bool())[None, None]
        }
    with drawing(given), paths:
        out = F.scaled_dot_product_attention(*tensors, dropout_p=0.5, **words)
        after = draw((*out.shape[:1], out.shape[2], 3)).bits(CPU)[0, 0]
    return torch.cat([out.flatten(), after.to(out.dtype)])


def test_joined_rows_attend_with_the_masks_that_they_have_when_padded() -> None:
    torch.manual_seed(0)
    order = (3, 8, 11)
    padded = tuple(torch.randn(3, 2, 5, 4) for _ in range(3))
    joined = tuple(
        torch.cat([x[place : place + 1, :, : LENGTHS[number]] for place, number in enumerate(order)], 2) for x in padded
    )
    apart = attention(rows(*order), padded)
    together = attention(rows(*order, joined=True), joined, tuple(LENGTHS[number] for number in order))
    kept = apart[:-3].view(3, 2, 5, 4)
    expected = torch.cat([kept[place, :, : LENGTHS[number]] for place, number in enumerate(order)], 1).flatten()
    torch.testing.assert_close(together[:-3], expected)
    torch.testing.assert_close(together[-3:], apart[-3:])  # and both go on with the same draw


def test_the_documents_of_a_packed_row_attend_as_under_a_mask() -> None:
    torch.manual_seed(0)
    tensors = tuple(torch.randn(1, 2, 5, 4) for _ in range(3))
    split = attention(rows(3), tensors, (3, 2))
    number = torch.tensor([0, 0, 0, 1, 1])
    mask = ((number[:, None] == number) & torch.ones(5, 5).tril().bool())[None, None]
    with drawing(rows(3)), CpuPaths():
        whole = F.scaled_dot_product_attention(*tensors, dropout_p=0.5, attn_mask=mask)
    torch.testing.assert_close(split[:-3], whole.flatten())


@pytest.mark.parametrize("mask", [None, torch.randn(2, 2, 5, 5)], ids=["plain", "a mask of each head"])
def test_attention_that_is_not_ours_is_drawn_by_rows_too(mask: Tensor | None) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 2, 5, 4) for _ in range(3)]

    def run(*numbers: int) -> Tensor:
        own = slice(0, 2) if len(numbers) == 2 else slice(1, 2)
        with drawing(rows(*numbers, width=5)), CpuPaths():
            return F.scaled_dot_product_attention(
                *(x[own] for x in tensors), dropout_p=0.5, attn_mask=None if mask is None else mask[own]
            )

    both = run(3, 8)
    torch.testing.assert_close(both[1:], run(8))
    with CpuPaths():
        plain = F.scaled_dot_product_attention(*tensors, attn_mask=mask)
    assert not torch.allclose(both, plain)


def test_recomputation_draws_the_same() -> None:
    def block(x: Tensor) -> Tensor:
        return dropout(torch.sin(dropout(x, 0.4)), 0.4)

    def gradient(run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Tensor:
        x = torch.linspace(1, 2, 60).view(2, 5, 6).requires_grad_()
        with drawing(rows(3, 8)):
            y = run(block, run(block, x))
        (found,) = torch.autograd.grad(y.pow(2).sum(), x)
        return found

    def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        def contexts():
            from contextlib import nullcontext

            return nullcontext(), same_again()

        out: Tensor = checkpoint(function, x, use_reentrant=False, context_fn=contexts)
        return out

    torch.testing.assert_close(gradient(recomputed), gradient(lambda function, x: function(x)))


def test_lengths_are_those_of_the_sequence_that_is_read() -> None:
    both = DrawnRows.of_step(0, 0, [1, 2], [[4, 2], [3, 1]], [4, 3])
    with drawing(both):
        assert lengths_for((2, 4, 8)) == [4, 2] and lengths_for((2, 3, 8)) == [3, 1]
        assert lengths_for((2, 9, 8)) is None and lengths_for((3, 4, 8)) is None
    with drawing(DrawnRows.of_step(0, 0, [1, 2], [[4, 2], [3, 4]], [4, 4])):
        assert [lengths_for((2, 4, 8)) for _ in range(2)] == [[4, 2], [3, 4]]
    assert lengths_for((2, 4, 8)) is None
