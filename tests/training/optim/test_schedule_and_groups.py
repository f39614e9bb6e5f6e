"""Learning rates: their course over the steps, and who gets which."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from peftcli.errors import UserError
from peftcli.recipe.optimizer_table import OPTIMIZERS
from peftcli.recipe.schema import TrainingSpec
from peftcli.training.optim.learning_rate import CURVES, learning_rate_factor, warmup_steps
from peftcli.training.optim.optimizers import make_optimizer, optimizer_problems
from peftcli.training.optim.parameter_groups import parameter_groups
from peftcli.training.run import train
from peftcli.training.step_plan import make_plan

PEAK = 2e-4


def course(total: int, **options: object) -> list[float]:
    factor = learning_rate_factor(TrainingSpec(**options), total, PEAK)
    return [factor(step) for step in range(total)]


def transformers_course(name: str, total: int, warmup: int) -> list[float]:
    """Return the factors of transformers' own schedule, without the step of the warm-up whose rate is 0."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup + 1, num_training_steps=total + 1)
    rates = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0] / PEAK)
    return rates


@pytest.mark.parametrize("name", get_args(TrainingSpec.model_fields["lr_scheduler_type"].annotation))
@pytest.mark.parametrize(("total", "warmup"), [(20, 5), (20, 0), (1, 0), (7, 6), (3, 1)])
def test_every_schedule_is_that_of_transformers(name: str, total: int, warmup: int) -> None:
    warmup = 0 if name == "constant" else warmup  # refused in a recipe: this one has none
    expected = transformers_course(name, total, warmup)
    assert course(total, lr_scheduler_type=name, warmup_steps=warmup) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(CURVES))
def test_every_schedule_warms_up_then_never_rises(name: str) -> None:
    values = course(20, lr_scheduler_type=name, warmup_steps=5)
    assert 0 < values[0] < values[1] < values[4] < 1.0 == values[5]
    assert values[5:] == sorted(values[5:], reverse=True)


def test_a_peak_below_the_end_of_polynomial_stays_where_it_is() -> None:
    factor = learning_rate_factor(TrainingSpec(lr_scheduler_type="polynomial"), 4, 1e-8)
    assert [factor(step) for step in range(4)] == [1.0] * 4


def test_linear_falls_to_almost_nothing_and_a_ratio_rounds_up() -> None:
    assert course(4) == [1.0, 0.75, 0.5, 0.25]
    assert warmup_steps(TrainingSpec(warmup_ratio=0.1), 15) == 2
    assert course(4, lr_scheduler_type="cosine")[2] == pytest.approx(0.5)


def named(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name.replace("__", "."): nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


def rates(groups: list[dict]) -> dict[int, tuple[float, float]]:
    return {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_each_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    found = named(a__lora_A__weight=(2, 3), a__lora_B__weight=(3, 2), classifier__weight=(2, 2), classifier__bias=(2,))
    spec = TrainingSpec(weight_decay=0.1, head_learning_rate=1e-2, lr_groups={r"lora_B": 5.0})
    got = rates(parameter_groups(found, spec, 1.0, head=["classifier.weight", "classifier.bias"],
                                 ratios={"a.lora_A.weight": 0.5, "a.lora_B.weight": 16.0}))  # fmt: skip
    assert got[id(found["a.lora_A.weight"])] == (0.5, 0.1)
    assert got[id(found["a.lora_B.weight"])] == (5.0, 0.1)
    assert got[id(found["classifier.weight"])] == (1e-2, 0.1)
    assert got[id(found["classifier.bias"])] == (1e-2, 0.0)
    assert len(got) == 4


def test_an_lr_group_must_compile_and_match() -> None:
    spec = TrainingSpec(lr_groups={"lora_Z": 1.0, "(": 1.0})
    with pytest.raises(UserError, match="matches no trainable parameter") as caught:
        parameter_groups(named(a__lora_A=(1, 1)), spec, 1.0)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", [name for name, info in OPTIMIZERS.items() if not info.paged])
def test_every_optimizer_that_needs_no_cuda_moves_a_parameter(name: str) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.ones(64, 128))
    spec = TrainingSpec(optim=name)
    optimizer = make_optimizer(spec, [{"params": [parameter], "lr": 1e-2}], 1e-2, torch.device("cpu"))
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.mean() < 1.0


def test_wrong_optimizers_are_named_with_a_remedy() -> None:
    (unknown,) = optimizer_problems(TrainingSpec(optim="adam_torch"), "cpu")
    assert "adamw_torch" in str(unknown)
    (paged,) = optimizer_problems(TrainingSpec(optim="paged_adamw_8bit"), "cpu")
    assert "use adamw_8bit" in str(paged)


def test_plan_counts_the_short_last_step_and_parts_of_epochs() -> None:
    spec = TrainingSpec(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1.5)
    plan = make_plan(spec, rows=20, processes=1)
    assert (plan.step_rows, plan.steps_per_epoch, plan.total_steps) == (8, 3, 5)
    assert plan.position(4) == (1, 1)
    assert make_plan(TrainingSpec(max_steps=7), 20, 2).total_steps == 7


def test_an_expression_that_earlier_ones_leave_nothing_to_is_told(recipe, recorder) -> None:
    for number, groups in enumerate(({"a.*lora_B": 1e-3, "lora": 2e-3}, {"lora": 2e-3, "a.*lora_B": 1e-3})):
        loaded = recipe(name=f"run{number}", training__max_steps=1)
        train(loaded.with_training(lr_groups=groups), reporter=recorder)
    assert [note for note in recorder.notes if "lr_groups" in note] == [
        "training.lr_groups.a.*lora_B has no effect: an expression before it matches the same parameters; put it "
        "before the more general ones"
    ]


@pytest.mark.parametrize("own", [{}, {"layers.0": 1e-5}], ids=["one rate", "another one of the first tensors"])
def test_the_rate_that_is_recorded_is_the_one_that_the_header_names(recipe, recorder, own) -> None:
    loaded = recipe(training__lr_groups=own, training__lr_scheduler_type="linear", training__max_steps=4)
    train(loaded, reporter=recorder)
    rates = [record.learning_rate for record in recorder.steps]
    assert recorder.facts["learning_rate"] == 5e-3
    assert rates == pytest.approx([5e-3 * left / 4 for left in (4, 3, 2, 1)])
