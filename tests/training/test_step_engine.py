"""A step through Accelerate: loss scaling, TF32 in training's own passes alone, a clock that waits for the device."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftcli.assembly.precision import Precision, decide_precision
from peftcli.distributed import processes
from peftcli.distributed.accelerate_engine import make_accelerator
from peftcli.distributed.processes import World
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import TrainingSpec
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.training import loop, setup
from peftcli.training.run import train
from peftcli.training.setup import build_session
from peftcli.training.watch import meter
from peftcli.training.watch.meter import Meter
from peftcli.training.watch.reporting import Silent
from tests.recipes import chat_rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def scaling(*arguments) -> Accelerator:
    """Accelerate scales losses on devices other than the CPU, where a run takes its scaler for these tests, too."""
    made = make_accelerator(*arguments)
    made.scaler, made.native_amp = torch.amp.GradScaler("cpu", init_scale=2.0**38), True
    return made


def test_float16_steps_that_overflow_are_not_taken_and_the_others_train(recipe, recorder, monkeypatch) -> None:
    seen: list[tuple[bool, Tensor]] = []

    def after(self: Attachment, step: int, total_steps: int) -> None:
        parameters = list(self.trainable_parameters().values())
        kept = torch.cat([parameter.detach().flatten().clone() for parameter in parameters])
        seen.append((all(parameter.grad is None for parameter in parameters), kept))

    monkeypatch.setattr(processes, "make_accelerator", scaling)
    half = Precision(torch.float16, torch.float32, True, "a test")
    monkeypatch.setattr(setup, "decide_precision", lambda *_a, **_k: half)
    monkeypatch.setattr(Attachment, "after_optimizer_step", after)
    fast = {"compute_weights": False, "attention": False}
    loaded = recipe(training__max_steps=24, training__logging_steps=1, training__fast_paths=fast, data__val_set_size=0)
    train(loaded, reporter=recorder)
    skipped = [empty for empty, _ in seen]
    assert len(seen) == 24 and skipped[0] and not skipped[-1]
    moved = [not torch.equal(before, now) for (_, before), (_, now) in pairwise(seen)]
    assert moved == [not empty for empty in skipped[1:]]
    assert recorder.losses[-1] < recorder.losses[0]


@pytest.mark.parametrize("scaled", [False, True])
def test_steps_whose_blocks_were_all_dropped_move_nothing_and_end_nothing(
    recipe, models, recorder, monkeypatch, scaled: bool
) -> None:
    """M2M100 drops each block in one of twenty passes; the one block that is trained here, in seven of ten."""
    if scaled:
        monkeypatch.setattr(processes, "make_accelerator", scaling)
        half = Precision(torch.float16, torch.float32, True, "a test")
        monkeypatch.setattr(setup, "decide_precision", lambda *_a, **_k: half)
    model = models("bart", "seq2seq_lm", decoder_layers=1, decoder_layerdrop=0.7)
    method = {"name": "lora", "r": 2, "target_modules": ["cross_attn.q"]}
    fast = {"compute_weights": False, "attention": False}
    for seed in range(2):
        loaded = recipe("bart", "seq2seq_lm", chat_rows(16), model=model, method=method, seed=seed, name=f"run{seed}",
                        training__max_steps=8, training__fast_paths=fast)  # fmt: skip
        train(loaded, reporter=recorder)
    norms = [record.grad_norm for record in recorder.steps]
    assert len(norms) == 16 and 4 < norms.count(0.0) < 16
    assert any("drops whole blocks in training (decoder_layerdrop 0.7 in its" in note for note in recorder.notes)


@pytest.mark.parametrize("on", [True, False])
def test_tf32_is_said_and_is_for_cuda(on: bool) -> None:
    found = decide_precision(TrainingSpec(tf32=on, bf16=False), torch.float32, CUDA, width=64)
    assert found.tf32 == ("tf32" in str(found)) == on
    assert not decide_precision(TrainingSpec(tf32=on, bf16=False), torch.float32, CPU, width=64).tf32


def test_tf32_is_on_in_training_passes_alone(recipe, recorder, monkeypatch) -> None:
    """A step's forward and backward passes; not evaluation, the method's own computations, or what comes after."""
    found: set[tuple[str, str]] = set()

    def look(where: str) -> None:
        found.add((where, torch.get_float32_matmul_precision()))

    def clip(*arguments):
        look("clipping")
        return clip_gradients(*arguments)

    def forward(module: nn.Module, _inputs: object) -> None:
        if recorder.facts:  # what is tried before the first step is over
            look("training" if module.training else "evaluation")

    clip_gradients = loop.clip_gradients
    monkeypatch.setattr(loop, "clip_gradients", clip)
    there = Precision(torch.float32, torch.float32, False, "a test", tf32=True)
    monkeypatch.setattr(setup, "decide_precision", lambda *_a, **_k: there)
    before = torch.get_float32_matmul_precision()
    handle = nn.modules.module.register_module_forward_pre_hook(forward)
    try:
        train(recipe(training__max_steps=2, data__val_set_size=4), reporter=recorder)
    finally:
        handle.remove()
    assert found == {("training", "high"), ("evaluation", "highest"), ("clipping", "highest")}
    assert torch.get_float32_matmul_precision() == before


class Queued(torch.Tensor):
    """A number on a device that is behind: who reads it waits for 5 seconds."""

    clock = 0.0

    def __float__(self) -> float:
        Queued.clock += 5.0
        return super().__float__()


@pytest.mark.parametrize(("logged", "settled"), [(1, False), (10, True)])
def test_the_time_that_the_device_still_needs_belongs_to_the_steps(recipe, tmp_path, monkeypatch, logged, settled):
    """At a logged step, where the loss is read, and before an evaluation, whose time is not a step's."""
    loaded = recipe(training__logging_steps=logged, training__max_steps=20)
    session = build_session(loaded, World(CPU), RunDirectory(tmp_path / "built"), Silent(), TrainState(step=2))
    watched = Meter(session)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: Queued.clock, time=lambda: 0.0))
    watched._loss = watched._loss.as_subclass(Queued)
    session.state.window["tokens"] = 40.0
    watched.start_step()
    Queued.clock += 1.0
    lines: list[dict] = []
    monkeypatch.setattr(type(session), "append_metrics", lambda _self, line: lines.append(line))
    watched.finish_step(torch.ones(()))
    if settled:
        assert session.state.step_seconds == 1.0 and not lines
        watched.settle()
    else:
        assert lines[0]["tokens_per_second"] == round(40.0 / 6.0, 1)
    assert session.state.step_seconds == 6.0
