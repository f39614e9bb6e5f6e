"""Rows that enter and leave a batch while texts are written get the texts that `generate` writes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftcli.inference import continuous_batch
from peftcli.inference.continuous_batch import ContinuousBatch, aligned, rows_at_once
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import open_run
from peftcli.inference.opened_run import OpenedRun, Predicting
from peftcli.tasks.decoding import Decoding
from peftcli.training.run import train
from tests.recipes import WORDS, write_jsonl

ROWS = [{"prompt": " ".join(WORDS[(i + j) % 12] for j in range(1 + i * 5 % 9))} for i in range(11)]
STOPS = tuple(range(32, 128, 9))
"""Token numbers that end a text: a model of random weights writes one of them sooner or later."""


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `generate` write all texts."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(continuous_batch, "fits", (lambda *_: False) if on else fits)

    fits = continuous_batch.fits
    return switch


def predicted(opened: OpenedRun, file: Path, **how: Any) -> list[dict[str, Any]]:
    from peftcli.data.prepare import prepare_for_prediction

    rows = prepare_for_prediction(str(file), opened.data_spec, "causal_lm", opened.tokenizer, opened.trained_format)
    return list(opened.predict(rows, STOPS, Predicting(**how)))


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "lora"), ("gpt2", "lora"), ("llama", "prompt_tuning"), ("llama", "prefix_tuning"), ("gpt2", "loreft")],
)
def test_texts_are_those_of_generate(
    recipe, tmp_path: Path, plain: Any, monkeypatch: Any, family: str, method: str
) -> None:
    loaded = recipe(family, "causal_lm", method={"name": method}, training__max_steps=2, training__max_new_tokens=14)
    train(loaded)
    opened = open_run(str(loaded.recipe.output_dir))
    file = write_jsonl(tmp_path / "in.jsonl", ROWS)
    steps: list[int] = []
    opened.model.register_forward_pre_hook(
        lambda _, __, given: steps.append(1) if given["input_ids"].shape[1] == 1 else None, with_kwargs=True
    )
    plain(True)
    expected = predicted(opened, file, batch_size=4)
    of_generate = len(steps)
    assert len({row["scores"]["tokens"] for row in expected}) > 1
    plain(False)
    monkeypatch.setattr(continuous_batch, "ROOM", 3)  # room is made anew many times
    monkeypatch.setattr(continuous_batch, "READ_TOKENS", 20)
    for size in (2, 4, 16):
        steps.clear()
        found = predicted(opened, file, batch_size=size)
        for row, one in zip(found, expected, strict=True):
            mean = row["scores"].pop("mean_logprob")
            assert mean == pytest.approx(one["scores"]["mean_logprob"], abs=1e-5)
            assert {**row, "scores": row["scores"]["tokens"]} == {**one, "scores": one["scores"]["tokens"]}
        assert size != 4 or len(steps) <= of_generate


def test_metrics_of_texts_are_those_of_generate(recipe, plain: Any) -> None:
    loaded = recipe("llama", "causal_lm", data__val_set_size=0.5, training__max_steps=1, training__max_new_tokens=5,
                    training__metrics=["rouge", "exact_match"], training__per_device_eval_batch_size=3)  # fmt: skip
    train(loaded)
    found = []
    for on in (True, False):
        plain(on)
        found.append(evaluate_run(loaded.recipe.output_dir))
        del found[-1]["eval_runtime"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [(16, 100, 48), (16, 504, 24), (16, 1016, 16), (2, 100, 14), (2, 1016, 2), (100, 1016, 100)],
)
def test_rows_at_once_hold_no_more_tokens_than_a_planned_batch(recipe, size: int, longest: int, expected: int) -> None:
    loaded = recipe("llama", "causal_lm", data__max_length=790, training__max_new_tokens=10,
                    training__per_device_eval_batch_size=size)  # fmt: skip
    assert rows_at_once(loaded.recipe, np.array([1, longest, 7], dtype=np.int32)) == expected


def test_more_rows_than_an_evaluation_batch_are_at_work_unless_their_number_is_given(recipe, tmp_path: Path) -> None:
    loaded = recipe("llama", "causal_lm", training__max_steps=1, training__max_new_tokens=3,
                    training__per_device_eval_batch_size=2)  # fmt: skip
    train(loaded)
    opened, file = open_run(str(loaded.recipe.output_dir)), write_jsonl(tmp_path / "in.jsonl", ROWS)
    at_work: list[int] = []
    opened.model.register_forward_pre_hook(
        lambda _, __, given: at_work.append(len(given["input_ids"])), with_kwargs=True
    )
    predicted(opened, file)
    assert max(at_work) > 2
    at_work.clear()
    predicted(opened, file, batch_size=2)
    assert max(at_work) == 2


def test_the_switch_leaves_all_texts_to_generate(recipe) -> None:
    loaded = recipe("llama", "causal_lm", training__max_steps=1, training__fast_paths={"continuous_batching": False})
    train(loaded)
    opened = open_run(str(loaded.recipe.output_dir))
    assert not continuous_batch.fits(opened.model, opened.task.generating(()))


def test_where_memory_lacks_the_other_rows_are_written_in_batches(
    recipe, tmp_path: Path, plain: Any, monkeypatch: Any
) -> None:
    loaded = recipe("llama", "causal_lm", training__max_steps=1, training__max_new_tokens=6)
    train(loaded)
    opened, file = open_run(str(loaded.recipe.output_dir)), write_jsonl(tmp_path / "in.jsonl", ROWS)
    plain(True)
    expected = [row["prediction"] for row in predicted(opened, file, batch_size=4)]
    plain(False)
    step, steps = ContinuousBatch._step, []

    def refused(self: ContinuousBatch) -> None:
        steps.append(1)
        if len(steps) > 8:
            raise MemoryError
        step(self)

    monkeypatch.setattr(ContinuousBatch, "_step", refused)
    assert [row["prediction"] for row in predicted(opened, file, batch_size=4)] == expected
    assert len(steps) == 9


def test_what_it_is_not_known_to_hold_for_is_left_to_generate(recipe, tmp_path: Path) -> None:
    loaded = recipe("llama", "causal_lm", training__max_steps=1, training__max_new_tokens=3)
    train(loaded)
    opened = open_run(str(loaded.recipe.output_dir))
    model: Any = opened.model
    task = opened.task.generating(())
    assert continuous_batch.fits(model, task)
    assert not continuous_batch.fits(model, opened.task.generating((), Decoding(temperature=1.0)))
    assert not continuous_batch.fits(model, opened.task.generating((), on_text=print))
    model.generation_config.repetition_penalty = 1.3
    assert not continuous_batch.fits(model, task)
    for value in (None, 1.0):
        model.generation_config.repetition_penalty = value
        assert continuous_batch.fits(model, task)
    model.config.sliding_window, model.config.layer_types = 8, ["sliding_attention"] * 2
    assert not continuous_batch.fits(model, task)


def test_rows_are_aligned_at_their_ends() -> None:
    first, second = torch.arange(1.0, 7).view(2, 1, 3, 1), torch.arange(1.0, 6).view(1, 1, 5, 1)
    whole = aligned([first, second], 4)
    assert whole.shape == (3, 1, 4 + continuous_batch.ROOM, 1)
    assert whole[:, 0, :4, 0].tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [2, 3, 4, 5]]
    assert not whole[:, :, 4:].any()
