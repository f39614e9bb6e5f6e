"""Making room for virtual tokens: what moves where."""

from __future__ import annotations

import torch

from peftcli.layers.virtual_tokens.prompt import document_starts, insert_at, insert_once


def test_one_prompt_per_row_behind_left_padding() -> None:
    ids = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]])
    insertion = insert_once(torch.tensor([2, 0]), 4, 2)
    assert insertion.take(ids, 100 + insertion.slot, -1).tolist() == [[0, 0, 100, 101, 7, 8], [100, 101, 5, 6, 7, 8]]
    positions = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    assert insertion.positions(positions).tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_a_prompt_before_every_packed_document() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]])
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]])
    starts = document_starts(ids, positions, 0)
    assert starts.long().tolist() == [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    insertion = insert_at(starts, 2)
    new = insertion.take(ids, 100 + insertion.slot, -1)
    assert new.tolist() == [[100, 101, 5, 6, 100, 101, 7, 8, 9], [100, 101, 5, 6, 7, 0, 0, -1, -1]]
    assert insertion.positions(positions)[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_a_document_may_begin_with_the_padding_token() -> None:
    ids, positions = torch.tensor([[0, 6, 0, 8]]), torch.tensor([[0, 1, 0, 1]])
    assert document_starts(ids, positions, 0).tolist() == [[True, False, True, False]]


def test_a_square_mask_grows_by_rows_and_columns() -> None:
    block = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    block[0, 0, :2, :2] = torch.ones(2, 2, dtype=torch.bool).tril()
    block[0, 0, 2:, 2:] = torch.ones(2, 2, dtype=torch.bool).tril()
    insertion = insert_at(torch.tensor([[True, False, True, False]]), 1)
    mask = insertion.square_mask(block, causal=True)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:3, :3] = torch.ones(3, 3, dtype=torch.bool).tril()
    expected[3:, 3:] = torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(mask[0, 0], expected)
