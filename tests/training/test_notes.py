"""What a run says before its first step."""

from __future__ import annotations

from peftcli.training.run import train
from tests.recipes import chat_rows


def test_validation_rows_that_are_training_rows_are_told(recipe, recorder) -> None:
    train(recipe(name="apart", data__val_set_size=0.25, training__max_steps=1), reporter=recorder)
    assert not [note for note in recorder.notes if "training rows too" in note]
    rows = chat_rows(8) * 2
    train(recipe("llama", "causal_lm", rows, data__val_set_size=0.5, training__max_steps=1), reporter=recorder)
    assert len([note for note in recorder.notes if "training rows too" in note]) == 1
