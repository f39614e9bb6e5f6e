"""Seeded values: the same for the same seed, and the caller's own random numbers go on as if nothing had been drawn."""

from __future__ import annotations

import torch

from peftcli.layers.seeded import seeded


def test_the_same_values_and_the_callers_go_on() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2, 4)
    torch.manual_seed(3)
    first = torch.randn(4)
    with seeded(7, [torch.device("cpu")]):
        one = torch.randn(4)
    with seeded(7):
        other = torch.randn(4)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(torch.stack([first, torch.randn(4)]), expected.flatten().view(2, 4), rtol=0, atol=0)
