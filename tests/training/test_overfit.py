"""LoRA on all linears (r = 16) overfits 16 rows of a tiny random model to under 10% of its first loss in 200 steps."""

from __future__ import annotations

import pytest

from peftcli.training.run import train
from tests.training.conftest import chat_rows, class_rows

CAUSAL = ["gpt2", "llama", "qwen2", "qwen3", "gemma3_text"]
CLASSIFICATION = ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "qwen3", "gemma3_text"]


@pytest.mark.parametrize("family", CAUSAL)
def test_causal(recipe, recorder, family) -> None:
    check(recipe(family, "causal_lm", chat_rows(16), **OPTIONS), recorder)


@pytest.mark.parametrize("family", CLASSIFICATION)
def test_classification(recipe, recorder, family) -> None:
    check(recipe(family, "sequence_classification", class_rows(16), **OPTIONS), recorder)


OPTIONS = {
    "method__r": 16,
    "training__learning_rate": 0.02,
    "training__lr_scheduler_type": "cosine",
    "training__warmup_steps": 10,
    "training__max_steps": 200,
    "training__per_device_train_batch_size": 16,
    "training__save_strategy": "no",
}


def check(loaded, recorder) -> None:
    train(loaded, reporter=recorder)
    assert min(recorder.losses[-20:]) < 0.1 * recorder.losses[0], (recorder.losses[0], recorder.losses[-20:])
