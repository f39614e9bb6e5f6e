"""LoRA on all linears (r = 16) overfits 16 rows of a tiny random model to under 10% of its first loss in 100 steps.

One family of each kind goes through the whole loop with each kind of row; with the loop's parts, every family and task
does in tests/matrix/test_lora_on_every_task.py. The models are drawn with initializer_range 0.2: at the usual 0.02 a
frozen head of width 32 cannot give logits beyond 0.7, whatever stands before it.
"""

from __future__ import annotations

from typing import Any

import pytest

from peftcli.training.run import train
from tests.recipes import WORDS, class_rows

CAUSAL = ["gpt2", "llama"]
CLASSIFICATION = ["bert", "gpt2", "gemma3_text"]
OPTIONS = {
    "method__r": 16,
    "method__lora_alpha": 32,
    "training__learning_rate": 0.005,
    "training__lr_scheduler_type": "cosine",
    "training__warmup_steps": 10,
    "training__max_steps": 100,
    "training__per_device_train_batch_size": 16,
    "training__save_strategy": "no",
}


def pair_rows(source: str, target: str) -> list[dict[str, str]]:
    """Sixteen prompts that differ, each with an answer of its own."""
    return [{source: f"{WORDS[i % 12]} {WORDS[i // 4]}", target: f"{WORDS[(i * 7) % 12]} on"} for i in range(16)]


def tag_rows() -> list[dict[str, list[str]]]:
    rows = []
    for i in range(16):
        words = [WORDS[(i + j * j) % 12] for j in range(2 + i % 3)]
        rows.append({"tokens": words, "tags": ["B-PET" if w in ("cat", "dog") else "O" for w in words]})
    return rows


@pytest.mark.parametrize("family", CAUSAL)
def test_causal(recipe, models, recorder, family) -> None:
    overfits(recipe, models, recorder, family, "causal_lm", pair_rows("prompt", "completion"))


@pytest.mark.parametrize("family", CLASSIFICATION)
def test_classification(recipe, models, recorder, family) -> None:
    overfits(recipe, models, recorder, family, "sequence_classification", class_rows(16))


def test_sequence_to_sequence(recipe, models, recorder) -> None:
    overfits(recipe, models, recorder, "t5", "seq2seq_lm", pair_rows("input", "target"))


def test_tags(recipe, models, recorder) -> None:
    summary = overfits(recipe, models, recorder, "bert", "token_classification", tag_rows())
    assert summary.supervised_tokens == 100 * sum(len(row["tags"]) for row in tag_rows())


def test_several_labels(recipe, models, recorder) -> None:
    rows = [{"text": f"{WORDS[i % 4]} {WORDS[4 + i // 4]}", "labels": [WORDS[i % 4], WORDS[4 + i // 4]][: 1 + i % 2]}
            for i in range(16)]  # fmt: skip
    overfits(recipe, models, recorder, "bert", "sequence_classification", rows, training__max_steps=200)


def test_numbers(recipe, models, recorder) -> None:
    rows = [{"text": f"{WORDS[i % 4]} {WORDS[4 + i // 4]}", "label": 0.5 + i % 4 - (i // 4) / 2} for i in range(16)]
    overfits(recipe, models, recorder, "bert", "sequence_classification", rows)


def test_pairs_of_texts(recipe, models, recorder) -> None:
    rows = [{"text": WORDS[i % 4], "text_pair": WORDS[i // 4], "label": str(int(i % 4 == i // 4))} for i in range(16)]
    overfits(recipe, models, recorder, "bert", "sequence_classification", rows)


def overfits(recipe: Any, models: Any, recorder: Any, family: str, task: str, rows: list[Any], **options: Any) -> Any:
    wide = {"initializer_factor": 2.0} if family == "t5" else {"initializer_range": 0.2}
    directory = models(family, task, **wide)
    summary = train(recipe(family, task, rows, model=directory, **{**OPTIONS, **options}), reporter=recorder)
    assert min(recorder.losses[-20:]) < 0.1 * recorder.losses[0], (recorder.losses[0], recorder.losses[-20:])
    return summary
