"""A method may start from training rows: once, from the same rows on every process, and not when a run goes on."""

from __future__ import annotations

import pytest
import torch

from peftcli.errors import Stopped
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder
from tests.training.test_train import adapter

PREFIX = {"name": "prefix_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 8}
FLAT = {**PREFIX, "prefix_projection": False}
STEPS = {"training__max_steps": 4, "training__save_steps": 1, "training__learning_rate": 1e-3}


def started(recorder: Recorder) -> list[str]:
    return [note for note in recorder.notes if "first 4 tokens of the training rows" in note]


@pytest.mark.parametrize("change", [{}, {"data__packing": True}], ids=["rows", "packed"])
def test_a_prefix_starts_from_the_rows_and_says_so(recipe, change) -> None:
    spread = {}
    for init in (None, "random"):  # by default text, in a decoder
        loaded, recorder = (
            recipe("gpt2", name=str(init), **STEPS, **change, method={**FLAT, "prefix_init": init}),
            Recorder(),
        )
        train(loaded, reporter=recorder)
        assert len(started(recorder)) == (init is None)
        spread[init] = max(float(tensor.std()) for tensor in adapter(loaded.recipe.output_dir).values())
    assert spread["random"] > 0.9 and spread[None] < 0.6  # N(0, 1), against keys and values of a tiny model


def stopped_and_resumed(recipe, options) -> tuple[Recorder, Recorder, Recorder]:
    """Train a recipe at one go, until step 2, and from there to the end."""
    whole, first, second = Recorder(), CtrlC(2), Recorder()
    train(recipe("gpt2", name="whole", **options), reporter=whole)
    parts = recipe("gpt2", name="parts", **options)
    with pytest.raises(Stopped):
        train(parts, reporter=first)
    train(parts, resume=True, reporter=second)
    return whole, first, second


def test_a_run_that_goes_on_starts_nothing(recipe) -> None:
    options = {"data__val_set_size": 4, **STEPS, "method": PREFIX}
    whole, first, second = stopped_and_resumed(recipe, options)
    assert (len(started(whole)), len(started(first)), len(started(second))) == (1, 1, 0)
    assert first.losses + second.losses == whole.losses


def test_eva_starts_once_and_goes_on_bit_for_bit(recipe) -> None:
    options = {"data__val_set_size": 4, **STEPS, "method": {"name": "lora", "r": 4, "init_lora_weights": "eva"}}
    whole, first, second = stopped_and_resumed(recipe, options)
    eva = [sum("(EVA)" in note for note in recorder.notes) for recorder in (whole, first, second)]
    assert eva == [1, 1, 0]
    assert first.losses + second.losses == whole.losses


def test_an_earlier_adapter_is_not_started_again(recipe) -> None:
    earlier = recipe("gpt2", name="earlier", **STEPS, method=FLAT)
    train(earlier, reporter=Recorder())
    recorder = Recorder()
    again = {**FLAT, "init_from": str(earlier.recipe.output_dir)}
    later = recipe("gpt2", name="later", **{**STEPS, "training__learning_rate": 1e-12}, method=again)
    train(later, reporter=recorder)
    assert not started(recorder)
    one, other = adapter(earlier.recipe.output_dir), adapter(later.recipe.output_dir)
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)
