"""One card: every method trains as on the CPU, in each dtype, on 4 bits, compiled, with each optimizer for cards."""

from __future__ import annotations

import math
from typing import Any

import pytest

METHODS = (
    "lora dora adalora vera ia3 prefix_tuning prompt_tuning adapter parallel_adapter compacter bitfit mam unipelt full"
)


def losses_of(recipe: Any, device: str, family: str = "llama", /, **changes: Any) -> list[float]:
    """Train a tiny model for three steps, and return the loss of each."""
    from peftcli.training.run import train
    from tests.recipes import Recorder

    recorder = Recorder()
    task = "sequence_classification" if family == "bert" else "causal_lm"
    steps = {"training__max_steps": 3, "training__device": device, "data__val_set_size": 4}
    train(recipe(family, task, None, **{**steps, **changes}), reporter=recorder, overwrite=True)
    assert len(recorder.losses) == 3 and all(map(math.isfinite, recorder.losses))
    return recorder.losses


@pytest.mark.parametrize("method", METHODS.split())
def test_a_method_trains_to_the_losses_of_the_cpu(recipe: Any, device: str, method: str) -> None:
    from tests.matrix.runs import SMALL

    if device == "cpu" and method not in ("lora", "prefix_tuning"):
        pytest.skip("tests/matrix trains every method on the CPU")
    name, more = ("lora", {"use_dora": True}) if method == "dora" else (method, {})
    family = "bert" if method == "bitfit" else "llama"
    wanted = {"method": {"name": name, **SMALL.get(name, {}), **more}, "training__tf32": False}
    there, here = (losses_of(recipe, where, family, name=where, **wanted) for where in (device, "cpu"))
    assert there == pytest.approx(here, rel=2e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_trains_beside_float32(recipe: Any, device: str, dtype: str) -> None:
    """Float16 with loss scaling; on a CPU it is refused."""
    from peftcli.errors import UserError

    half = {"training__bf16": "auto", f"training__{dtype}": True}
    if device == "cpu" and dtype == "fp16":
        with pytest.raises(UserError, match="fp16 needs CUDA"):
            losses_of(recipe, device, **half)
        return
    exact = losses_of(recipe, device, name="exact", training__bf16=False)
    assert losses_of(recipe, device, name=dtype, **half) == pytest.approx(exact, rel=3e-2)


def test_a_4_bit_base_trains_packed_and_checkpointed(recipe: Any, device: str) -> None:
    pytest.importorskip("bitsandbytes")
    packed = {"data__packing": True, "training__gradient_checkpointing": True, "training__bf16": True}
    losses_of(recipe, device, method={"name": "qlora", "r": 4}, **packed)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"])
def test_an_optimizer_trains(recipe: Any, device: str, name: str) -> None:
    if name != "adamw_torch":
        pytest.importorskip("bitsandbytes")
    if device == "cpu" and name.startswith("paged"):
        pytest.skip("refused on a CPU")
    losses_of(recipe, device, training__optim=name)


def test_a_run_goes_on_from_its_checkpoint(recipe: Any, device: str) -> None:
    """Attention's backward pass adds in any order on a card: the result is equal to rounding."""
    from peftcli.errors import Stopped
    from peftcli.training.run import train
    from tests.recipes import CtrlC, Recorder

    changes = {"training__max_steps": 4, "training__device": device, "training__save_strategy": "steps"}
    changes |= {"training__save_steps": 1, "method__lora_dropout": 0.1}
    whole, first, rest = Recorder(), CtrlC(at=2), Recorder()
    train(recipe(name="whole", **changes), reporter=whole)
    with pytest.raises(Stopped):
        train(recipe(name="halves", **changes), reporter=first)
    train(recipe(name="halves", **changes), reporter=rest, resume=True)
    assert first.losses + rest.losses == pytest.approx(whole.losses, rel=0 if device == "cpu" else 1e-4)


def test_a_run_is_evaluated_predicted_with_and_merged(recipe: Any, device: str, tmp_path: Any) -> None:
    from peftcli.inference.evaluate_run import evaluate_run
    from peftcli.inference.predict_run import predict_run
    from peftcli.merging.merge_run import merge_run
    from peftcli.training.run import train

    loaded = recipe(training__max_steps=2, training__device=device, data__val_set_size=4, training__max_new_tokens=4)
    summary = train(loaded)
    run = loaded.recipe.output_dir
    assert summary.eval is not None
    assert evaluate_run(run)["eval_loss"] == pytest.approx(summary.eval["eval_loss"], rel=1e-4)
    assert list(predict_run(run, loaded.recipe.data.path))
    assert merge_run(run, tmp_path / "merged", use_alone=False).verified


@pytest.mark.card_only
def test_compiled_blocks_train_to_the_same_losses(recipe: Any, device: str) -> None:
    pytest.importorskip("triton")
    plain = losses_of(recipe, device, name="plain")
    assert losses_of(recipe, device, name="compiled", training__torch_compile=True) == pytest.approx(plain, rel=1e-3)


@pytest.mark.card_only
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_flash_attention_gives_the_losses_of_sdpa(recipe: Any, device: str, packed: bool) -> None:
    """Packed, with several rows a batch: transformers looks at positions in one row only."""
    pytest.importorskip("flash_attn")
    same = {"model__dtype": "bfloat16", "data__packing": packed, "training__per_device_train_batch_size": 2}
    plain = losses_of(recipe, device, name="sdpa", model__attn_implementation="sdpa", **same)
    flash = losses_of(recipe, device, name="flash", model__attn_implementation="flash_attention_2", **same)
    assert flash == pytest.approx(plain, rel=2e-2)


def test_float32_weights_and_flash_attention_are_refused(recipe: Any, device: str) -> None:
    from peftcli.errors import UserError

    with pytest.raises(UserError, match="flash_attention_2"):
        losses_of(recipe, device, model__attn_implementation="flash_attention_2")


@pytest.mark.card_only
def test_a_step_does_not_wait_for_the_card(recipe: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two lines of the log: torch raises where Python would wait."""
    import torch

    from peftcli.training import loop

    inner = loop.clip_gradients

    def clip(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        return inner(*arguments)

    monkeypatch.setattr(loop, "clip_gradients", clip)
    try:
        from peftcli.training.run import train

        train(recipe(training__max_steps=4, training__logging_steps=100, training__device=device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
