"""The tracker counts what lives, against bytes counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from peftcli.analysis.estimate.c_heap import Heap
from peftcli.analysis.estimate.live_tensors import LiveTensors

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


def test_a_heap_takes_the_smallest_hole_and_joins_neighbours() -> None:
    heap = Heap(1 << 30)
    mega = 2**20
    heap.play([(1, mega), (2, mega), (3, mega), (1, -mega), (2, -mega), (4, 2 * mega)])
    assert heap.peak < 3 * mega + 2**12
    assert heap.play([(5, mega)]) > 4 * mega


def test_a_large_block_is_mapped_apart_and_given_back() -> None:
    heap = Heap(1000)
    assert heap.play([(1, 5000), (1, -5000), (2, 5000)]) < 6000
