"""Every method through the whole loop: it learns, resumes bit for bit, and what is saved is what was evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import Stopped
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.protocol.registry import registry
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder
from tests.training.test_train import adapter

SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1},
    "miss": {"r": 8},
    "shira": {"r": 4},
    "prefix_tuning": {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 8},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "adapter": {"bottleneck_size": 4},
    "parallel_adapter": {"bottleneck_size": 4},
    "compacter": {"bottleneck_size": 4, "phm_dim": 2},
    "mam": {"num_virtual_tokens": 4, "bottleneck_size": 4, "encoder_hidden_size": 8},
    "compose": {"parts": [{"name": "lora", "r": 2}, {"name": "adapter", "bottleneck_size": 4}]},
    "freeze": {},
}
ELSEWHERE = {"qlora": "its 4-bit base has a test of its own"}
METHODS = [name for name in registry.names() if name not in ELSEWHERE]
OPTIONS = {"data__val_set_size": 4, "training__max_steps": 8, "training__learning_rate": 0.01,
           "training__eval_steps": 4, "training__save_steps": 3}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal_lm"), ("bert", "sequence_classification")])
def test_trains_resumes_and_opens_again(recipe, name, family, task) -> None:
    info = registry.info(name)
    if info.tasks and task not in info.tasks:
        pytest.skip(f"{name} does not serve {task}")
    options = {**OPTIONS, "method": {"name": name, **SMALL.get(name, {})}}
    whole, recorder = recipe(family, task, name="whole", **options), Recorder()
    summary = train(whole, reporter=recorder)
    assert min(recorder.losses[1:]) < recorder.losses[0]
    again = evaluate_run(whole.recipe.output_dir)
    assert again["eval_loss"] == pytest.approx(summary.eval["eval_loss"], rel=1e-5)

    parts, first, second = recipe(family, task, name="parts", **options), CtrlC(5), Recorder()
    with pytest.raises(Stopped):
        train(parts, reporter=first)
    train(parts, resume=True, reporter=second)
    assert first.losses + second.losses == recorder.losses
    if info.artifact == "adapter":
        one, other = adapter(parts.recipe.output_dir), adapter(whole.recipe.output_dir)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


ADALORA = {"name": "adalora", **SMALL["adalora"]}


@pytest.mark.parametrize("method", [ADALORA, {"name": "compose", "parts": [ADALORA]}], ids=["alone", "in compose"])
def test_an_adapter_above_its_budget_is_not_kept_as_the_best(recipe, recorder, method) -> None:
    """The best evaluation is that of step 3, whose ranks are not pruned yet; steps 4 and 5 are settled."""
    words = {**OPTIONS, "training__max_steps": 5, "training__eval_steps": 1, "training__learning_rate": 3.0}
    loaded = recipe(method=method, training__greater_is_better=True, **words)  # so large a loss is there by then
    summary = train(loaded, reporter=recorder)
    losses = [line["eval_loss"] for line in recorder.evaluations[1:]]  # the first is before any step
    assert max(losses) == max(losses[:3]), "these settings no longer make an unsettled step the best"
    assert summary.eval["eval_loss"] == pytest.approx(max(losses[3:]), rel=1e-5)
    kept = [tensor for name, tensor in adapter(loaded.recipe.output_dir).items() if name.endswith("lora_E")]
    assert sum(len(tensor) for tensor in kept) <= SMALL["adalora"]["target_r"] * len(kept)
