"""Figures of a card: tokens a second, and how far the estimate of a step's memory is from what it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
         "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 1024}  # fmt: skip
"""A decoder of 150 million parameters; on the CPU the tiny one is used."""


def decoder(device: str, models: Callable[..., Path]) -> Path:
    """Return a decoder for this device."""
    return models("llama", "causal_lm", **LARGE) if device == "cuda" else models("llama")


def long_rows(device: str) -> list[dict[str, str]]:
    """Return rows that fill the length which is trained on."""
    words = 400 if device == "cuda" else 20
    return [{"prompt": f"the cat {number}", "completion": "on the mat and " * (words // 4)} for number in range(64)]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_tokens_a_second(
    recipe: Any, models: Any, device: str, checkpointing: bool, record_property: Callable[[str, object], None]
) -> None:
    from peftcli.training.run import train

    loaded = recipe(
        "llama",
        "causal_lm",
        long_rows(device),
        model=decoder(device, models),
        data__max_length=512 if device == "cuda" else 24,
        training__max_steps=30 if device == "cuda" else 2,
        training__per_device_train_batch_size=16 if device == "cuda" else 4,
        training__device=device,
        training__bf16=True,
        training__logging_steps=10,
        training__gradient_checkpointing=checkpointing,
    )
    summary = train(loaded)
    record_property("tokens_per_second", round(summary.tokens_per_second))
    record_property("peak_memory_bytes", summary.peak_memory_bytes)
    assert summary.tokens_per_second > 0


def test_the_estimate_of_a_steps_memory(
    recipe: Any, models: Any, device: str, record_property: Callable[[str, object], None]
) -> None:
    """What `gradient_checkpointing: auto` decides by, against what the card held; within a factor of two."""
    import torch

    from peftcli.training import run as run_module
    from peftcli.training.session import Session
    from peftcli.training.speed.recomputation import need_of

    seen: dict[str, float] = {}
    inner = run_module.train_steps

    def measured(session: Session, *rest: Any) -> bool:
        need = need_of(
            session.batches, session.attachment, session.info, session.task, session.computing, session.anatomy
        )
        assert need is not None
        seen["estimated"] = need.activations
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            seen["before"] = torch.cuda.memory_allocated()
        done = inner(session, *rest)
        if device == "cuda":
            seen["taken"] = torch.cuda.max_memory_allocated() - seen["before"]
        return done

    run_module.train_steps = measured
    try:
        run_module.train(
            recipe(
                "llama",
                "causal_lm",
                long_rows(device),
                model=decoder(device, models),
                data__max_length=512 if device == "cuda" else 24,
                training__max_steps=2,
                training__per_device_train_batch_size=8,
                training__device=device,
                training__gradient_checkpointing=False,
            )
        )
    finally:
        run_module.train_steps = inner
    for name, value in seen.items():
        record_property(f"{name}_mb", round(value / 2**20, 1))
    assert seen["estimated"] > 0
    if device == "cuda":
        assert 0.5 < seen["estimated"] / seen["taken"] < 2
