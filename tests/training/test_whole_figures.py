"""What a run reports covers every step, and what it trains has gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.protocol.attachment import Attachment
from peftcli.training.run import train
from peftcli.training.watch.first_gradients import unreached_note

WORLD = World(torch.device("cpu"))


def test_an_early_stopped_run_counts_every_step_whatever_is_logged(recipe) -> None:
    found = {}
    for every in (1, 30):
        summary = train(recipe(name=f"every{every}", data__val_set_size=4, training__max_steps=40,
                               training__eval_steps=1, training__logging_steps=every,
                               training__early_stopping_patience=2, training__early_stopping_threshold=9))  # fmt: skip
        assert summary.stopped_early and summary.steps == 3
        found[every] = summary
    one, other = found.values()
    assert (one.train_tokens, one.supervised_tokens) == (other.train_tokens, other.supervised_tokens)
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-6)
    assert other.tokens_per_second > 0


def test_tokens_are_counted_exactly(recipe, tmp_path) -> None:
    """Beyond 2^24, the largest count up to which float32 holds every number."""
    from peftcli.record.run_directory import RunDirectory
    from peftcli.record.train_state import TrainState
    from peftcli.training.setup import build_session
    from peftcli.training.watch.meter import Meter
    from peftcli.training.watch.reporting import Silent

    window = {"loss_sum": 1.0, "count": 2.0, "tokens": 2.0**24 + 1, "supervised": 2.0**24 + 3}
    state = TrainState(window=window)
    Meter(build_session(recipe(), WORLD, RunDirectory(tmp_path / "built"), Silent(), state)).close()
    assert (state.tokens, state.supervised_tokens) == (2**24 + 1, 2**24 + 3)


def parameters(*reached: bool) -> dict[str, nn.Parameter]:
    found = {}
    for index, has in enumerate(reached):
        found[f"block.{index}.lora_A"] = parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.zeros(2) if has else None
    return found


def test_tensors_without_a_gradient_are_named_with_their_modules() -> None:
    assert unreached_note(parameters(True, True), WORLD) is None
    note = unreached_note(parameters(True, False, True, False), WORLD)
    assert note is not None and note.startswith("2 of 4 trained tensors have no gradient")
    assert note.endswith("block.1, block.3")
    with pytest.raises(UserError, match="no trained tensor has a gradient"):
        unreached_note(parameters(False, False), WORLD)


def test_a_run_names_a_tensor_that_the_loss_does_not_reach(recipe, recorder, monkeypatch) -> None:
    every = Attachment.trainable_parameters

    def with_idle(self: Attachment) -> dict[str, nn.Parameter]:
        idle = self.__dict__.setdefault("idle", nn.Parameter(torch.ones(1)))
        return {**every(self), "somewhere.idle": idle}

    monkeypatch.setattr(Attachment, "trainable_parameters", with_idle)
    train(recipe(training__max_steps=2), reporter=recorder)
    assert [note for note in recorder.notes if "no gradient" in note and note.endswith(": somewhere")]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"name": "vera", "r": 4, "target_modules": ["lm_head"]}, "VeRA at lm_head"),
        ({"name": "compose", "parts": [{"name": "ia3"}, {"name": "prompt_tuning"}]}, "the part prompt_tuning"),
        ({"name": "prompt_tuning"}, None),  # no one expects that it merges
        ({"name": "ia3"}, None),
    ],
    ids=["vera at the head", "compose", "prompt_tuning", "ia3"],
)
def test_what_will_not_merge_is_said_before_training(recipe, tmp_path, recorder, method, reason) -> None:
    from peftcli.record.run_directory import RunDirectory
    from peftcli.record.train_state import TrainState
    from peftcli.training.setup import build_session

    build_session(recipe(method=method), WORLD, RunDirectory(tmp_path / "built"), recorder, TrainState())
    said = [note for note in recorder.notes if "peft merge" in note]
    assert [reason in note for note in said] == ([] if reason is None else [True])


@pytest.mark.parametrize(
    ("method", "factors"),
    [
        ({"name": "ia3"}, "ia3_l"),
        ({"name": "adalora", "init_r": 4, "target_r": 2}, "lora_E"),
        ({"name": "vera", "r": 4}, "vera_lambda"),
        ({"name": "lora", "use_dora": True}, "lora_magnitude_vector"),
        ({"name": "unipelt", "prefix": None, "adapter": None}, "scale."),
        ({"name": "compose", "parts": [{"name": "ia3"}, {"name": "lora", "target_modules": ["attn.q"]}]}, "ia3_l"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_what_multiplies_does_not_decay(method, factors: str) -> None:
    from peftcli.recipe.schema import TrainingSpec
    from peftcli.training.optim.parameter_groups import parameter_groups
    from tests.methods import harness

    words = dict(method)
    attachment = harness.attached(str(words.pop("name")), "llama", **words)
    named = attachment.trainable_parameters()
    mine = {name for name in named if factors in name}
    assert mine and mine == attachment.multiplicative()
    groups = parameter_groups(named, TrainingSpec(weight_decay=0.1), 1.0, multiplicative=attachment.multiplicative())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(named[name])] for name in mine} == {0.0}
    assert {decay[id(p)] for name, p in named.items() if name not in mine and p.ndim >= 2} <= {0.1}


def test_a_run_with_decay_leaves_ia3_where_its_gradients_put_it(recipe) -> None:
    """With a rate of almost nothing, only a decay could move the vectors: none does."""
    from tests.training.test_train import adapter

    loaded = recipe(method={"name": "ia3"}, training__learning_rate=1e-12, training__weight_decay=1e9)
    train(loaded)
    assert all(torch.allclose(t, torch.ones_like(t), atol=1e-6) for t in adapter(loaded.recipe.output_dir).values())


@pytest.mark.parametrize("greater", [True, False])
def test_the_number_of_trained_parameters_does_not_depend_on_the_best_step(recipe, greater) -> None:
    """A prefix's network serves training only; the best prefix is loaded without it."""
    loaded = recipe(method={"name": "prefix_tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 8},
                    data__val_set_size=4, training__eval_steps=1, training__greater_is_better=greater)  # fmt: skip
    summary = train(loaded)
    assert (summary.best_step == summary.steps) is not greater
    assert summary.trainable > summary.saved
