"""The recipe decides what Accelerate does, whatever its config or another part of the program told it."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from peftcli.distributed.gradients import clip_gradients
from peftcli.distributed.processes import World
from peftcli.training.run import train

OF_A_CONFIG = {
    "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "LOCAL_RANK": "0", "WORLD_SIZE": "1", "RANK": "0",
}  # fmt: skip


def test_runs_of_one_process_have_their_own_engine_and_leave_a_callers_alone(recipe, monkeypatch) -> None:
    losses = {}
    mine = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=3)
    for name, value in OF_A_CONFIG.items():
        monkeypatch.setenv(name, value)
    try:
        for name, bf16 in {"first": False, "half": True, "again": False}.items():
            losses[name] = train(recipe(name=name, training__max_steps=3, training__bf16=bf16)).train_loss
        assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("no", 3)
    finally:
        mine.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
    for name in OF_A_CONFIG:
        monkeypatch.delenv(name)
    losses["plain"] = train(recipe(name="plain", training__max_steps=3, training__bf16=False)).train_loss
    assert losses["first"] == losses["again"] == losses["plain"] != losses["half"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_one_process_starts_no_group(precision) -> None:
    world = World(torch.device("cpu"))
    world.compute_in(precision)
    assert world.accelerator is world.accelerator
    assert (world.accelerator.num_processes, world.accelerator.device.type) == (1, "cpu")
    assert world.accelerator.mixed_precision == precision
    assert not torch.distributed.is_initialized()


def test_a_process_without_a_row_takes_the_loss_scale_out_of_the_others_gradients() -> None:
    accelerator = Accelerator(cpu=True)
    try:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # as in float16, which Accelerate has on GPUs
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        parameter = torch.nn.Parameter(torch.zeros(2))
        accelerator.prepare_optimizer(torch.optim.SGD([parameter]), device_placement=False)
        parameter.grad = torch.tensor([24.0, 32.0])  # what the other processes summed
        assert clip_gradients(accelerator, [parameter], 10.0).item() == 5.0
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
