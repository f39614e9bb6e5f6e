"""`torch_compile: true` computes what the blocks compute, compiles a bounded number of times, and changes nothing else.

The quick tests trace and differentiate as the compiler does but generate no code (backend `aot_eager`); the slow ones
go through inductor and a C++ compiler.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from peftcli.errors import UserError
from peftcli.training.run import train
from peftcli.training.speed import compiled_blocks
from tests.recipes import Recorder, chat_rows, class_rows

ALL_LINEAR = {"name": "lora", "r": 4, "target_modules": "all-linear"}
METHODS: dict[str, dict[str, Any]] = {
    "lora": ALL_LINEAR,
    "adapter": {"name": "adapter"},
    "prefix_tuning": {"name": "prefix_tuning", "num_virtual_tokens": 4},
    "bitfit": {"name": "bitfit"},
    "adalora": {"name": "adalora", "init_r": 4, "target_r": 2},
    "compacter": {"name": "compacter"},
    "ia3": {"name": "ia3"},
    "unipelt": {"name": "unipelt"},
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the generation of code, which takes a minute of C++."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))


def variants() -> int:
    """Return how often a block was compiled, and check that nothing was left to Python."""
    assert sum(counters["graph_break"].values()) == 0, counters["graph_break"]
    assert counters["frames"]["total"] == counters["frames"]["ok"], counters["frames"]  # no limit was hit
    return int(counters["stats"]["unique_graphs"])


def run(
    make: Any, name: str, family: str = "llama", method: dict[str, Any] = ALL_LINEAR, /, **changes: Any
) -> Recorder:
    causal = family != "bert"
    loaded = make(
        family, "causal_lm" if causal else "sequence_classification", chat_rows(24) if causal else class_rows(24),
        **{"name": name, "method": method, "data__val_set_size": 0.25, **changes},
    )  # fmt: skip
    recorder = Recorder()
    train(loaded, reporter=recorder)
    return recorder


def assert_same(eager: Recorder, compiled: Recorder) -> None:
    assert compiled.losses == pytest.approx(eager.losses, abs=1e-4)
    norms = [[record.grad_norm for record in recorder.steps] for recorder in (eager, compiled)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert compiled.evaluations[-1]["eval_loss"] == pytest.approx(eager.evaluations[-1]["eval_loss"], abs=1e-4)


def weights(recorder: Recorder) -> dict[str, torch.Tensor]:
    assert recorder.summary is not None
    return load_file(Path(recorder.summary.output_dir) / "adapter" / "adapter_model.safetensors")


@pytest.mark.usefixtures("traced_only")
def test_compiled_blocks_train_as_they_are(recipe) -> None:
    eager = run(recipe, "eager", "llama", {"name": "lora"})
    compiled = run(recipe, "compiled", "llama", {"name": "lora"}, training__torch_compile=True)
    assert 0 < variants() <= 4  # the first block and the others (input without and with gradient), then any length
    assert_same(eager, compiled)
    before, after = weights(eager), weights(compiled)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, atol=1e-4, rtol=1e-3)
    assert compiled_blocks.NOTE in compiled.notes
    assert compiled_blocks.NOTE not in eager.notes


@pytest.mark.usefixtures("traced_only")
def test_evaluating_and_generating_compile_nothing(recipe) -> None:
    changes = {"training__max_steps": 1, "training__eval_generate": 2}
    run(recipe, "rarely", "llama", {"name": "lora"}, training__torch_compile=True, **changes)
    assert variants() == 2  # of the one training step


@pytest.mark.parametrize(
    ("variable", "device"), [("CXX", "cpu"), ("PATH", "cuda")], ids=["no C++ compiler", "no C compiler"]
)
def test_a_missing_compiler_is_said_before_anything_loads(recipe, monkeypatch, variable: str, device: str) -> None:
    monkeypatch.setattr(compiled_blocks, "find_spec", lambda _name: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, "/nowhere/g++")
    (problem,) = compiled_blocks.compile_problems(True, device)
    assert problem.key == "training.torch_compile"
    assert "compiler" in problem.message
    assert "remove training.torch_compile" in str(problem.suggestion)
    assert compiled_blocks.compile_problems(False, device) == []
    if device == "cpu":
        with pytest.raises(UserError, match="C\\+\\+ compiler") as caught:
            train(recipe(training__torch_compile=True))
        assert caught.value.problems[0].line is not None


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_is_compiled_whole(recipe, method: str, family: str, checkpointing: bool) -> None:
    if (method, family) == ("bitfit", "llama"):
        pytest.skip("no biases")
    changes = {"training__gradient_checkpointing": checkpointing, "training__max_steps": 8}
    eager = run(recipe, "eager", family, METHODS[method], **changes)
    compiled = run(recipe, "compiled", family, METHODS[method], training__torch_compile=True, **changes)
    assert 0 < variants() <= 6
    assert_same(eager, compiled)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("traced_only")
def test_a_deep_model_of_two_kinds_of_blocks_stays_compiled(recipe, models) -> None:
    """Every block of Gemma 3 knows its number, and whether its attention is local."""
    model = str(models("gemma3_text", num_hidden_layers=12))
    for method in ("lora", "prefix_tuning"):
        torch._dynamo.reset()
        counters.clear()
        changes = {"model": model, "training__max_steps": 12, "training__per_device_train_batch_size": 5}
        run(recipe, method, "gemma3_text", METHODS[method], training__torch_compile=True, **changes)
        assert 0 < variants() <= 12


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_dropout_is_drawn_and_repeatable(recipe) -> None:
    method = {**ALL_LINEAR, "lora_dropout": 0.5}
    first, second = (run(recipe, name, "llama", method, training__torch_compile=True) for name in ("one", "two"))
    without = run(recipe, "none", training__torch_compile=True)
    assert first.losses == second.losses
    assert first.losses[1:] != pytest.approx(without.losses[1:], abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_a_compiled_run_goes_on_where_it_was(recipe) -> None:
    changes = {"training__torch_compile": True, "training__save_steps": 2}
    whole = run(recipe, "whole", **changes)
    loaded = recipe(
        "llama", "causal_lm", chat_rows(24), name="parts", method=ALL_LINEAR, data__val_set_size=0.25, **changes
    )

    class Stops(Recorder):
        def step(self, record: Any) -> None:
            super().step(record)
            if record.step == 4:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(loaded, reporter=Stops())
    rest = Recorder()
    train(loaded, reporter=rest, resume=True)
    assert whole.losses[-len(rest.losses) :] == pytest.approx(rest.losses, abs=1e-5)
    assert len(rest.losses) < len(whole.losses)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("family", "method"), [("llama", "lora"), ("llama", "prefix_tuning"), ("bert", "bitfit"), ("bert", "adapter")]
)
def test_generated_code_computes_the_same(recipe, family: str, method: str) -> None:
    eager = run(recipe, "eager", family, METHODS[method])
    compiled = run(recipe, "compiled", family, METHODS[method], training__torch_compile=True)
    assert variants() > 0
    assert_same(eager, compiled)
    assert compiled.summary is not None
    assert json.loads((Path(compiled.summary.output_dir) / "summary.json").read_text())["status"] == "finished"
