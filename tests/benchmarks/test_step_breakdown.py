"""The breakdown of a step: which pass an operation belongs to, its arithmetic, and its page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPE = {"hidden_size": 24, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def breakdown() -> Iterator[Any]:
    """The script, which imports others as `python benchmarks/step_breakdown.py` lets it."""
    sys.path.insert(0, str(BENCHMARKS))
    import step_breakdown

    yield step_breakdown
    sys.path.remove(str(BENCHMARKS))


def event(name: str, start: float, length: float, *shapes: list[int], **changes: Any) -> dict[str, Any]:
    plain = {"ph": "X", "cat": "cpu_op", "name": name, "tid": 1, "ts": start, "dur": length}
    return {**plain, "args": {"Input Dims": list(shapes)}, **changes}


TRACE = {
    "traceEvents": [
        event("ProfilerStep#3", 0, 10_000, cat="user_annotation"),
        event("ProfilerStep#4", 10_000, 10_000, cat="user_annotation"),
        event("aten::linear", 0, 3_000, [100, 24], [64, 24]),
        event("aten::mm", 500, 2_000, [100, 24], [24, 64]),
        event("aten::silu", 3_000, 400, [1, 100, 64]),
        event("aten::pow", 3_400, 200, [1, 100, 24]),
        event("aten::add", 3_600, 200, [1, 100, 24], [1, 100, 24]),
        event("aten::mul", 3_800, 200, [1, 2, 100, 12], [1, 1, 100, 12]),
        event("aten::scaled_dot_product_attention", 4_000, 1_000, [1, 2, 100, 12]),
        event("aten::copy_", 4_100, 500, [1, 100, 24]),
        event("_LowRankAdd", 5_000, 600, [100, 24]),
        event("aten::addmm_", 5_100, 200, [100, 24], [100, 8], [8, 24]),
        event("_HeadCrossEntropy", 6_000, 1_000, [100, 24]),
        event("aten::mm", 6_000, 400, [100, 24], [24, 500]),
        event("aten::exp_", 6_400, 300, [100, 500]),
        event("Optimizer.step#AdamW.step", 9_000, 500, cat="user_annotation"),
    ]
}


def test_each_operation_is_in_one_pass_and_the_passes_are_the_whole_step(breakdown: Any) -> None:
    found, total, steps = breakdown.passes(TRACE, SHAPE)
    assert (total, steps) == (10.0, 2)
    assert {name: round(one["ms"], 3) for name, one in found.items()} == {
        "products of the base": 1.0,
        "products of the head": 0.2,
        "products of LoRA": 0.1,
        "softmax and loss": 0.3,
        "attention": 0.5,
        "LoRA beside its products": 0.2,
        "SwiGLU": 0.2,
        "rotary embedding, and heads put together": 0.1,
        "residuals, and sums of gradients": 0.1,
        "norms": 0.1,
        "optimizer": 0.25,
        breakdown.DISPATCH: 0.5,
        breakdown.BETWEEN: 6.45,
    }
    assert found["products of the base"]["gflop"] == pytest.approx(2 * 100 * 24 * 64 / 1e9 / 2)


def test_the_page_names_the_rates_and_the_ceilings(breakdown: Any) -> None:
    passes = {"products of the base": {"ms": 600.0, "gflop": 60.0}, "norms": {"ms": 400.0, "gflop": 0.0}}
    record = {
        "cell": "a", "machine": "b", "versions": "c", "date": "d", "passes": passes, "ms": 1000.0, "tokens": 100.0,
        "peak": 200.0,
    }  # fmt: skip
    page = breakdown.page([record], f"before\n{breakdown.BEGIN}\nold\n{breakdown.END}\nafter\n")
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| products of the base | 600 | 60.0% | 100 | 50% |" in page
    assert "| norms | 400 | 40.0% | | |" in page
    assert "60 GFLOP a step, 30% of the peak" in page
    assert "would reach 143 tokens/s; with the products as they are and all else free, 167; with both, 333." in page
