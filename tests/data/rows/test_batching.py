"""The order of batches: every row once, the same after a resume; and what a batch holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from peftcli.data.rows.batching import epoch_batches
from peftcli.data.rows.micro_batches import longest_first, micro_batches, split_by_tokens
from peftcli.data.rows.padding import collate
from peftcli.data.rows.row_set import Row


class Lengths:
    """Rows of which only the lengths matter."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.lengths = np.random.default_rng(seed).integers(1, 200, size=count).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        return Row(np.arange(self.lengths[index], dtype=np.int32), None, "a", index + 1)

    def __iter__(self) -> Any:
        return (self[number] for number in range(len(self)))


@pytest.mark.parametrize("order", ["group_by_length", "random", "sequential"])
@pytest.mark.parametrize("count", [1, 4, 9, 10, 64, 65, 1001])
def test_every_row_once_and_no_batch_is_empty(count: int, order: Any) -> None:
    found = epoch_batches(Lengths(count), 4, seed=0, epoch=1, sampling=order)
    assert sorted(row for batch in found for row in batch) == list(range(count))
    assert all(1 <= len(batch) <= 4 for batch in found) and len(found) == -(-count // 4)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    rows = Lengths(100)
    first = epoch_batches(rows, 8, seed=1, epoch=2)
    assert first == epoch_batches(rows, 8, seed=1, epoch=2)
    assert first != epoch_batches(rows, 8, seed=1, epoch=3) != epoch_batches(rows, 8, seed=2, epoch=2)


def test_a_sequential_order_is_that_of_the_data_in_every_epoch() -> None:
    for epoch in (0, 1):
        order = epoch_batches(Lengths(10), 4, seed=0, epoch=epoch, sampling="sequential")
        assert order == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_grouping_saves_padding_and_still_mixes() -> None:
    rows = Lengths(2000)

    def padding(order: list[list[int]]) -> float:
        padded = sum(int(rows.lengths[batch].max()) * len(batch) for batch in order)
        return padded / int(rows.lengths.sum()) - 1

    grouped, free = (epoch_batches(rows, 8, seed=0, epoch=0, sampling=order) for order in ("group_by_length", "random"))
    assert padding(grouped) < 0.03 < 0.5 < padding(free)
    means = [float(rows.lengths[batch].mean()) for batch in grouped]
    assert abs(np.corrcoef(range(len(means)), means)[0, 1]) < 0.2


class Padding:
    """All that collation asks of a tokenizer."""

    pad_token_id = 9


def row(count: int, labels: Any = None, **more: Any) -> Row:
    return Row(np.arange(1, count + 1, dtype=np.int32), labels, "a", 1, **more)


@pytest.mark.parametrize(("side", "ids", "mask"), [
    ("right", [[1, 2, 3], [1, 9, 9]], [[1, 1, 1], [1, 0, 0]]),
    ("left", [[1, 2, 3], [9, 9, 1]], [[1, 1, 1], [0, 0, 1]]),
])  # fmt: skip
def test_padding_on_either_side(side: str, ids: Any, mask: Any) -> None:
    rows = [row(3, np.array([-100, 2, 3], np.int32)), row(1, np.array([5], np.int32))]
    batch = collate(rows, Padding(), "text", padding_side=side)
    assert batch["input_ids"].tolist() == ids and batch["attention_mask"].tolist() == mask
    assert batch["labels"].tolist() == [[-100, 2, 3], [5, -100, -100] if side == "right" else [-100, -100, 5]]


def test_rows_without_labels_make_a_batch_without() -> None:
    assert set(collate([row(3)], Padding(), "text")) == {"input_ids", "attention_mask"}


def test_packed_rows_have_positions_and_no_mask() -> None:
    one = row(3, np.array([-100, 2, 3], np.int32), position_ids=np.array([0, 1, 0], np.int32))
    two = row(5, np.array([-100] * 5, np.int32), position_ids=np.array([0, 1, 2, 3, 4], np.int32))
    batch = collate([one, two], Padding(), "text", padding_side="left")
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    assert batch["labels"].tolist()[0] == [-100, 2, 3, -100, -100]


def test_segments_and_classes() -> None:
    rows = [
        row(2, 1, token_type_ids=np.array([0, 1], np.uint8)),
        row(3, 0, token_type_ids=np.array([0, 1, 1], np.uint8)),
    ]
    batch = collate(rows, Padding(), "labelled")
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert batch["labels"].tolist() == [1, 0] and not batch["labels"].is_floating_point()


def test_micro_batches_share_every_row_once_and_keep_the_bounds() -> None:
    lengths = np.array([5, 90, 7, 30, 30, 8, 6, 40])
    ordered = longest_first(range(8), lengths)
    shares = [micro_batches(ordered[rank::2], lengths, batch_size=3, max_tokens=70) for rank in range(2)]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(8))
    for batch in (batch for share in shares for batch in share):
        assert len(batch) <= 3
        assert len(batch) == 1 or max(lengths[batch]) * len(batch) <= 70
    assert split_by_tokens([], lengths, 3, None) == []


def test_joined_micro_batches_fill_the_budget_with_rows_of_any_length() -> None:
    lengths = np.array([300, 200, 100, 212, 250, 40, 900], dtype=np.int32)
    ordered = longest_first(range(7), lengths)
    got = micro_batches(ordered, lengths, batch_size=8, max_tokens=512, joined=True)
    assert sorted(row for batch in got for row in batch) == list(range(7))
    sums = [sum(int(lengths[row]) for row in batch) for batch in got]
    assert max(sums) <= 900 and len(got) <= 3
