"""Numbers that are not finite end a run before anything is kept of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.layers.finite_tensors import first_not_finite
from peftcli.training.run import train
from peftcli.training.watch.finite import FiniteWatch, require_finite

WORLD = World(torch.device("cpu"))


def test_a_diverging_run_leaves_finite_checkpoints_only(recipe) -> None:
    """Its weights overflow between two logged steps; a checkpoint is due at each step."""
    steps = {"training__max_steps": 20, "training__logging_steps": 10, "training__save_steps": 1}
    wild = {"training__learning_rate": 100.0, "training__optim": "sgd", "training__max_grad_norm": 0}
    loaded = recipe(method={"name": "full"}, **steps, **wild)
    with pytest.raises(UserError, match="is not finite"):
        train(loaded)
    out = Path(loaded.recipe.output_dir)
    files = sorted(out.glob("checkpoints/step-*/*.safetensors"))
    assert files, "these settings no longer leave a checkpoint before the overflow"
    assert all(first_not_finite(load_file(file)) is None for file in files)
    assert not (out / "model").exists()


class Poison:
    """Makes a trained tensor NaN after a step, as a bad update would."""

    def __init__(self, session, at: int) -> None:
        self.session, self.at = session, at
        self.name, self.parameter = next(iter(session.attachment.trainable_parameters().items()))
        session.attachment.after_optimizer_step = self

    def __call__(self, step: int, _total: int) -> None:
        if step == self.at:
            self.parameter.data[0] = float("nan")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "nothing was written as its result"),
        ({"training__save_steps": 3}, "no checkpoint was written"),
        ({"data__val_set_size": 4}, "it was not evaluated"),
    ],
)
def test_a_parameter_that_becomes_nan_is_named_with_its_step(recipe, monkeypatch, options, what) -> None:
    from peftcli.training import run as running

    poisons: list[Poison] = []
    build = running.build_session

    def poisoned(*args, **kwargs):
        session = build(*args, **kwargs)
        poisons.append(Poison(session, at=6))
        return session

    monkeypatch.setattr(running, "build_session", poisoned)
    loaded = recipe(
        **{"training__save_strategy": "no", **options} if "training__save_steps" not in options else options
    )
    with pytest.raises(UserError) as caught:
        train(loaded)
    assert str(caught.value).startswith(f"the parameter {poisons[0].name} is not finite after step 6: {what}")
    assert not (Path(loaded.recipe.output_dir) / "adapter").exists()
    assert {path.name for path in Path(loaded.recipe.output_dir).glob("checkpoints/*")} <= {
        "step-000003",
        "best-000003",
    }


def test_the_first_step_that_was_not_finite_is_remembered() -> None:
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    watch = FiniteWatch(WORLD, norms=True)
    watch.see(good, good, 1)
    watch.check()
    with pytest.raises(UserError, match="the gradient is not finite at step 2"):
        watch.see(good, bad, 2)
    with pytest.raises(UserError, match="the gradient is not finite at step 2"):
        watch.see(bad, bad, 3)  # what a device that runs ahead would still see
    with pytest.raises(UserError, match="the gradient is not finite at step 2"):
        watch.check()


def test_a_norm_that_overflows_under_loss_scaling_is_no_fault() -> None:
    watch = FiniteWatch(WORLD, norms=False)
    watch.see(torch.tensor(1.0), torch.tensor(float("inf")), 1)
    watch.check()
    with pytest.raises(UserError, match="the loss is not finite at step 2"):
        watch.see(torch.tensor(float("inf")), torch.tensor(1.0), 2)


def test_the_first_tensor_is_named() -> None:
    tensors = {
        "a": torch.ones(2),
        "ids": torch.tensor([1]),
        "none": torch.ones(0),
        "b": torch.tensor([1.0, float("inf")]),
    }
    assert first_not_finite(tensors) == "b"
    del tensors["b"]
    assert first_not_finite(tensors) is None
    require_finite(tensors, 1, WORLD, "nothing")
