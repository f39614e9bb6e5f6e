"""The cost of methods: products and attention are counted from shapes, and the table's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.common.record import between
from benchmarks.method_overhead.__main__ import BEGIN, END, LEFT_OUT, block, line, page_part
from benchmarks.method_overhead.counted_products import CountedProducts
from peftcli.protocol.registry import registry

ROOT = Path(__file__).parents[2]


def test_products_are_counted_forward_and_backward() -> None:
    x, weight, bias = torch.ones(3, 5, 4), torch.ones(6, 4, requires_grad=True), torch.ones(6)
    with CountedProducts() as work:
        torch.nn.functional.linear(x, weight, bias).sum().backward()
    assert work.flops == 2 * 15 * 4 * 6 * 2
    with CountedProducts() as work:
        torch.ones(2, 3).addmm_(torch.ones(2, 7), torch.ones(7, 3)).exp_()
        torch.ones(5, 2, 3) @ torch.ones(5, 3, 4)
    assert work.flops == 2 * (2 * 7 * 3 + 5 * 2 * 3 * 4)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_counted_forward_and_backward(causal: bool) -> None:
    query, key, value = (torch.randn(2, 3, 8, 4, requires_grad=True) for _ in range(3))
    pairs = 2 * 3 * 8 * 8 * 4 * (0.5 if causal else 1.0)
    with CountedProducts() as work:
        out = scaled_dot_product_attention(query, key, value, is_causal=causal)
    assert work.flops == 2 * pairs * 2
    with CountedProducts() as work:
        out.sum().backward()
    assert work.flops == 2 * pairs * 5


def test_every_method_has_a_block_that_is_allowed() -> None:
    for name in registry.names():
        if name not in LEFT_OUT:
            registry.info(name).params(**block(name))
    assert block("lora") == {"name": "lora", "target_modules": ["attn.q", "attn.v"], "r": 8}
    assert block("bitfit") == {"name": "bitfit"}


def test_a_method_is_held_against_the_base_and_lora() -> None:
    base = {"ms": 100.0, "gflop": 50.0, "trained": 1}
    methods: dict[str, Any] = {
        "lora": {"runs": [{"ms": 104.0, "gflop": 51.0, "trained": 10, "base": base}]},
        "oft": {"runs": [{"ms": ms, "gflop": 60.0, "trained": 1234, "base": base} for ms in (110.0, 130.0)]},
        "vera": {"runs": []},
    }
    record = {"methods": methods, "machine": "m", "versions": "v", "commit": "c", "date": "d", "layers": 1, "tokens": 8}
    expected = "| oft | 1,234 | 120 | **1.20** (1.10 to 1.30, 2 repeats) | 20 | 10.00 | 20 | +16 |"
    assert line("oft", record) == expected
    assert line("vera", record).startswith("| vera | not measured |")
    assert "50 GFLOP a step" in page_part({**record, "steps": 3})


def test_its_place_in_the_page_is_there() -> None:
    results = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    stored = ROOT / "benchmarks/overhead.json"
    record = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    assert between(results, BEGIN, END, page_part(record)) == results
