"""The tracker counts what lives, against bytes counted by hand."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from peftcli.analysis.estimate import live_tensors
from peftcli.analysis.estimate.heap_replay import heap_bytes
from peftcli.analysis.estimate.largest_batches import shapes
from peftcli.analysis.estimate.live_tensors import LiveTensors
from peftcli.analysis.estimate.product_memory import A_COLUMN, BUFFER, CACHED, COMPILED, ProductMemory
from peftcli.analysis.estimate.synthetic_rows import EqualRows
from peftcli.layers.chunked_loss import head_loss
from peftcli.layers.hashed_bits import hashed_bits, keys_tensor

FLOAT = 4


def test_a_linear_layer_keeps_what_its_backward_pass_needs() -> None:
    tracker = LiveTensors()
    with tracker.running():
        with tracker.part("weights"):
            layer = nn.Linear(64, 32)
        assert tracker.live["weights"] == FLOAT * (64 * 32 + 32)
        x = torch.randn(10, 64)
        y = layer(x)
        assert tracker.live["activations"] == FLOAT * (10 * 64 + 10 * 32)
        y.sum().backward()
        del x, y
        assert layer.weight.grad is not None and layer.bias.grad is not None
        tracker.claim([layer.weight.grad, layer.bias.grad], "gradients")
        assert tracker.live["gradients"] == FLOAT * (64 * 32 + 32)
    assert tracker.live["activations"] == 0


def test_what_is_made_anew_can_take_the_place_of_a_parameter() -> None:
    """torch refuses to swap what a weak reference leads to, and torch 2.15 keeps one to each new tensor."""
    with LiveTensors().running():
        assert weakref.getweakrefs(torch.empty(3, 4)) == []


def test_the_peak_is_the_fullest_moment() -> None:
    tracker = LiveTensors()
    with tracker.running():
        first = torch.randn(1000)
        second = first * 2
        del first
        third = second * 2
        assert (tracker.peak, tracker.total) == (2 * FLOAT * 1000, 2 * FLOAT * 1000)
        del second, third
        assert tracker.total == 0


def test_masked_attention_takes_the_branches_of_its_mask() -> None:
    with LiveTensors().running():
        assert not bool(torch.tensor([1, 0]).all())  # whole numbers have values
        assert bool((torch.randn(3) > 9).all())  # numbers with a fraction have none: true


def test_what_depends_on_values_that_are_there_is_computed() -> None:
    with LiveTensors().running():
        assert torch.repeat_interleave(torch.arange(3), torch.tensor([1, 0, 2])).tolist() == [0, 2, 2]


def of_some_operations() -> tuple[list[tuple[int, int]], list[tuple[object, ...]]]:
    """Return the events and what came out of views, changes in place, and tensors beside others that have values."""
    tracker, found = LiveTensors(), []
    with tracker.running():
        x, places = torch.randn(6, 8), torch.tensor([0, 2, 4])
        for _ in range(2):  # the second time all is remembered
            view = x.t()[1:5].unflatten(0, (2, 2))
            x.mul_(2.0).add_(x[0])
            chosen = x[places] + places[:, None]
            wide = torch.where(places[:, None] > 2, chosen, x.new_zeros(())).to(torch.float64).expand(2, 3, 8)
            for made in (view, x, chosen, wide, wide.clone(), *x.split(4), torch.empty_like(wide, dtype=torch.int8)):
                shares = made.untyped_storage()._cdata == x.untyped_storage()._cdata
                found.append((made.shape, made.stride(), made.storage_offset(), made.dtype, made.device, shares))
    return tracker.events, found


def test_an_operation_that_is_remembered_makes_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_tensors, "_MADE", {})
    remembered = of_some_operations()
    assert len(live_tensors._MADE) > 8
    monkeypatch.setattr(live_tensors, "_sign", lambda _value: None)
    assert of_some_operations() == remembered


@dataclass(frozen=True)
class Seen:
    """What a head's loss took: at its fullest moment by part, in the end of each pass, and in how many events."""

    peak: Counter[str]
    totals: list[int]
    events: int


def of_a_loss(*, trained: bool, by_row: bool, dtype: torch.dtype) -> Seen:
    """Count a loss over several chunks of rows, each with several blocks of the vocabulary where there are such."""
    tracker = LiveTensors()
    with tracker.running():
        head = nn.Linear(8, 9 * 1024 + 7, dtype=dtype).requires_grad_(trained)
        hidden = torch.randn(9 * 512 + 3, 8, dtype=dtype).requires_grad_()
        targets = torch.zeros(len(hidden), dtype=torch.long)
        tracker.restart()
        loss = head_loss(head, hidden, targets, by_row=by_row, chunk_bytes=4 * 2**20).sum()
        totals = [tracker.total]
        loss.backward()
        totals.append(tracker.total)
    return Seen(tracker.at_peak, totals, len(tracker.events))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_takes_what_its_first_passes_and_the_last_one_take(
    trained: bool, by_row: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = of_a_loss(trained=trained, by_row=by_row, dtype=dtype)
    monkeypatch.setattr(live_tensors, "passes_that_show_memory", nullcontext)
    every = of_a_loss(trained=trained, by_row=by_row, dtype=dtype)
    assert (few.peak, few.totals) == (every.peak, every.totals)
    recomputed = trained and by_row  # then the chunks are checkpointed parts of the graph, and all are run
    assert recomputed or 2 * few.events < every.events


def test_random_bits_take_what_the_first_passes_and_the_last_one_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> tuple[Counter[str], int, int]:
        tracker = LiveTensors()
        with tracker.running():
            bits = hashed_bits(keys_tensor([(1, 2)] * 4000, torch.device("cpu")), 512)
        return tracker.at_peak, tracker.total, bits.nbytes

    few = seen()
    monkeypatch.setattr(live_tensors, "passes_that_show_memory", nullcontext)
    assert few == seen() and few[1] >= few[2] == 4000 * 512 * 2


MEGA = 2**20


@pytest.fixture(autouse=True)
def _heap_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment tells the C library of its heap is told to the replay, too."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)


def test_a_heap_that_is_kept_holds_what_lay_between_blocks_that_live() -> None:
    grown = [(1, MEGA), (2, MEGA), (3, MEGA), (1, -MEGA), (3, -MEGA)]
    halves = heap_bytes([*grown, (4, MEGA // 2), (5, MEGA // 2)], keeps=True)
    assert 3 * MEGA <= halves < 3.5 * MEGA  # they fit where the first and the third block were
    assert heap_bytes([*grown, (4, 2 * MEGA)], keeps=True) > 1.2 * halves  # these two are no neighbours


def test_a_heap_is_what_lives_where_nothing_is_given_back() -> None:
    events = [(number, 100_000) for number in range(100)]
    assert 1.0 <= heap_bytes(events, keeps=True) / 1e7 < 1.3


FIRST = [*((n, MEGA // 4) for n in range(1, 401)), *((n, -MEGA // 4) for n in range(1, 401))]


def test_what_stays_between_blocks_keeps_them_from_becoming_one() -> None:
    large = [(n, 9 * MEGA // 4) for n in range(1000, 1040)]
    between = [event for n, event in enumerate(FIRST) for event in ([event] if n % 8 else [event, (600 + n, 200)])]
    later = heap_bytes([*FIRST, *large], keeps=True)  # the large blocks lie where the others were
    assert heap_bytes([*between, *large], keeps=True) > 1.3 * later  # none fits between what stays


def product(rows: int, columns: int, dtype: torch.dtype) -> None:
    torch.mm(torch.randn(rows, 16, dtype=dtype), torch.randn(16, columns, dtype=dtype))


def kept(tracker: LiveTensors) -> list[int]:
    gone = {number for number, size in tracker.events if size < 0}
    return [size for number, size in tracker.events if number not in gone]


def test_each_kind_of_a_product_in_16_bits_stays_compiled_once() -> None:
    tracker = LiveTensors()
    with tracker.running():
        for rows in (8, 8, 24):
            product(rows, 32, torch.bfloat16)
    assert sum(kept(tracker)) == 2 * sum(COMPILED) and tracker.total == 0  # no tensor


def test_a_product_in_32_bits_keeps_a_buffer_as_wide_as_the_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    tracker = LiveTensors()
    with tracker.running():
        for columns in (32, 16, 64):
            product(8, columns, torch.float32)
    assert kept(tracker) == [BUFFER, BUFFER, BUFFER + 32 * A_COLUMN, BUFFER + 64 * A_COLUMN]


def test_a_heap_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = heap_bytes(FIRST, keeps=True)
    monkeypatch.setenv("PEFT_TEST_LONG", "x" * 100_000)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert heap_bytes(FIRST, keeps=True) == before


def test_micro_batches_of_other_shapes_have_products_of_their_own() -> None:
    products = ProductMemory()
    products.kept("mm", [torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(4, 2, dtype=torch.bfloat16)])
    assert products.further(3) == 2 * sum(COMPILED) and products.further(1) == 0
    assert products.further(10**6) == (CACHED - 1) * sum(COMPILED)
    lengths = EqualRows(6, 5, "text", 1, None).lengths
    steps = [[[0, 1], [2]], [[3, 4], [5]]]
    assert shapes(lengths, steps, joined=True) == shapes(lengths, steps, joined=False) == 2
    assert shapes(lengths, [[[0], [1]]], joined=True) == 1
