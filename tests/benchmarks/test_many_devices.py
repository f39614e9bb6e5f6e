"""The counts of memory and communication on many devices, against numbers worked out by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def many_devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("many_devices")
    for name in ("many_devices", "side_by_side", "cells", "material"):
        sys.modules.pop(name, None)


def test_a_tiny_llama_is_counted_tensor_by_tensor(many_devices: Any) -> None:
    shape = {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 50, "tie_word_embeddings": True,
    }  # fmt: skip
    counted = many_devices.count(shape, {"name": "lora", "r": 2, "target_modules": ["attn.q", "attn.v"]}, 2)
    attention, ffn, norms = 8 * 8 + 2 * 8 * 4 + 8 * 8, 3 * 8 * 12, 2 * 8
    block, root = attention + ffn + norms, 50 * 8 + 8  # the head is the embeddings, and counts once
    assert counted.block == 2 * block
    assert counted.root == 2 * root
    assert counted.base == 2 * (3 * block + root)
    assert counted.trained == 3 * (2 * (8 + 8) + 2 * (8 + 4))


def test_what_a_device_holds_and_receives(many_devices: Any) -> None:
    counted = many_devices.Counted(base=1000, block=200, root=100, trained=10)
    assert counted.lasting(4, sharded=True) == 250 + 160
    assert counted.lasting(4, sharded=False) == 1000 + 160
    assert counted.passing(sharded=True) == 500
    assert counted.passing(sharded=False) == 0
    assert counted.received(4, sharded=False) == pytest.approx(2 * 0.75 * 40)
    assert counted.received(4, sharded=True, micro_batches=3) == pytest.approx(
        2 * 0.75 * 40 + 3 * 0.75 * (2 * 900 + 100)
    )
    assert counted.received(1, sharded=True) == 0
