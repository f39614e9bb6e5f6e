"""How a training forward pass computes: the CPU's own attention in bfloat16, and its switch."""

from __future__ import annotations

import pytest

from peftcli.layers import short_attention as module
from peftcli.training.run import train


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    plain = module.short_attention

    def counted(*args, **kwargs):
        made.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "short_attention", counted)
    return made


def test_bfloat16_takes_short_attention_and_learns_the_same(recipe, recorder, calls) -> None:
    train(recipe(training__bf16=True, name="own"), reporter=recorder)
    own, taken = list(recorder.losses), len(calls)
    recorder.steps.clear()
    train(recipe(training__bf16=True, name="torch", model__attn_implementation="sdpa"), reporter=recorder)
    assert taken and len(calls) == taken
    assert recorder.losses == pytest.approx(own, rel=5e-3)


@pytest.mark.parametrize("change", [{"training__gradient_checkpointing": True}, {}])
def test_not_when_recomputing_nor_in_float32(recipe, recorder, calls, change) -> None:
    train(recipe(training__bf16=bool(change), training__max_steps=1, **change), reporter=recorder)
    assert not calls
