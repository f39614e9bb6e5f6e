"""Micro-batches without padding: the same losses and weights, fewer tokens computed, and only where rows stay apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.data.rows import collation
from peftcli.layers.cpu import document_attention as module
from peftcli.protocol.registry import registry
from peftcli.training.run import train
from peftcli.training.step_plan import cpu_micro_batch_tokens

METHODS = sorted(name for name in registry.names() if name not in ("bitfit", "compose"))


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Lengths of the documents of each call that was computed document by document."""
    seen: list[tuple[int, ...]] = []
    original = module.DocumentAttention.__call__

    def counted(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        if out is not None:
            seen.append(self.documents.lengths)
        return out

    monkeypatch.setattr(module.DocumentAttention, "__call__", counted)
    return seen


def adapter(summary) -> dict[str, torch.Tensor]:
    return load_file(next((summary.output_dir / "adapter").glob("*.safetensors")))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"training__gradient_checkpointing": True},
        {"training__max_tokens_per_micro_batch": 40},
        {"training__bf16": True},
    ],
    ids=["plain", "recomputed", "split", "bf16"],
)
def test_learns_the_same_as_with_padding(recipe, recorder, joined, family, change) -> None:
    train(recipe(family, name="joined", **change), reporter=recorder)
    losses, norms = list(recorder.losses), [step.grad_norm for step in recorder.steps]
    assert any(len(lengths) > 1 for lengths in joined if lengths != (5, 7, 6))
    taken = len(joined)
    recorder.steps.clear()
    train(recipe(family, name="padded", training__fast_paths={"padding_free": False}, **change), reporter=recorder)
    assert len(joined) == taken
    tolerance = 5e-3 if "training__bf16" in change else 1e-5
    assert losses == pytest.approx(recorder.losses, rel=tolerance)
    assert norms == pytest.approx([step.grad_norm for step in recorder.steps], rel=20 * tolerance)


@pytest.mark.parametrize("family", ["bloom", "opt", "gpt_neo"])
def test_models_that_do_not_keep_rows_apart_are_padded(recipe, joined, family) -> None:
    targets = {"method__target_modules": "all-linear"}
    train(recipe(family, training__max_steps=1, **targets))
    assert not [lengths for lengths in joined if lengths != (5, 7, 6)]


@pytest.mark.parametrize(
    "change",
    [
        {"training__neftune_noise_alpha": 5.0},
        {"model__attn_implementation": "sdpa"},
        {"model__attn_implementation": "eager"},
    ],
)
def test_not_with_noise_by_length_nor_with_a_chosen_attention(recipe, joined, change) -> None:
    train(recipe(training__max_steps=1, **change))
    assert not joined


def test_a_window_is_kept(recipe, recorder, models, joined) -> None:
    narrow = models("mistral", sliding_window=4)
    losses = []
    for on in (True, False):
        recorder.steps.clear()
        switches = {"padding_free": on}
        train(recipe("mistral", model=narrow, name=f"w{on}", training__fast_paths=switches), reporter=recorder)
        losses.append(list(recorder.losses))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "parallel_adapter": {"dropout": 0.0},  # masks differ where rows lie elsewhere
    "miss": {"r": 8},
    "shira": {"r": 4},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_same(recipe, recorder, method) -> None:
    losses = []
    for on in (True, False):
        recorder.steps.clear()
        options = OPTIONS.get(method, {})
        change = {
            "method": {"name": method, **options},
            "training__fast_paths": {"padding_free": on},
            "training__learning_rate": 1e-3,
        }
        train(recipe(name=f"{method}{on}", training__max_steps=3, **change), reporter=recorder)
        losses.append(list(recorder.losses))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_narrow_models_take_more_tokens_at_once() -> None:
    assert [cpu_micro_batch_tokens(width) for width in (4096, 768, 384)] == [512, 512, 1024]


@pytest.mark.parametrize(("tokens", "joins"), [(1, False), (40, True)])
def test_a_row_alone_is_not_joined(recipe, monkeypatch, tokens, joins) -> None:
    sizes = []
    original = collation.join
    monkeypatch.setattr(collation, "join", lambda rows: sizes.append(len(rows)) or original(rows))
    train(recipe(training__max_tokens_per_micro_batch=tokens, training__max_steps=2))
    assert bool(sizes) == joins and 1 not in sizes
