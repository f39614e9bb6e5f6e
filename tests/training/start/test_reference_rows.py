"""Preference tuning with every method, through the whole loop: it learns, goes on bit for bit, opens again, and a step
is the same however its pairs are batched."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.protocol.registry import registry
from peftcli.recipe.preference_losses import PREFERENCE_LOSSES
from peftcli.training.run import train
from tests.matrix.several_worlds import in_worlds
from tests.recipes import WORDS, CtrlC, Recorder, write_jsonl
from tests.training.test_every_method import METHODS, SMALL
from tests.training.test_train import adapter


def pairs(count: int) -> list[dict[str, str]]:
    """Prompts with an answer in green, and a worse one, of another length, in red."""
    return [
        {
            "prompt": f"the {WORDS[i % 12]} {WORDS[(i * 5 + i // 12) % 12]} " + "and " * (i % 5),
            "chosen": f"green {WORDS[(i * 7) % 12]}",
            "rejected": f"red {WORDS[(i + 3) % 12]} and " + "bad " * (i % 3),
        }
        for i in range(count)
    ]


OPTIONS: dict[str, Any] = {"data__val_set_size": 4, "training__learning_rate": 0.01, "training__max_steps": 4,
                           "training__eval_steps": 4, "training__save_steps": 1}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_trains_goes_on_and_opens_again(recipe, name: str) -> None:
    options = {**OPTIONS, "method": {"name": name, **SMALL.get(name, {})}}
    if name == "full":
        options["training__learning_rate"] = 1e-3
    family = "gpt2" if name == "bitfit" else "llama"  # which has no biases
    whole, recorder = recipe(family, "preference", pairs(16), name="whole", **options), Recorder()
    summary = train(whole, reporter=recorder)
    first = recorder.losses[0]
    assert first == pytest.approx(0.693147, abs=1e-4)  # log 2: the model is its own reference
    assert recorder.losses[-1] < first
    assert not [note for note in recorder.notes if "no gradient" in note]
    again = evaluate_run(whole.recipe.output_dir)
    assert {key: again[key] for key in again if key != "eval_runtime"} == pytest.approx(
        {key: summary.eval[key] for key in again if key != "eval_runtime"}, rel=1e-4, abs=1e-5
    )

    parts, stopped, rest = recipe(family, "preference", pairs(16), name="parts", **options), CtrlC(2), Recorder()
    with pytest.raises(Stopped):
        train(parts, reporter=stopped)
    train(parts, resume=True, reporter=rest)
    assert stopped.losses + rest.losses == recorder.losses
    if registry.info(name).artifact == "adapter":
        one, other = adapter(parts.recipe.output_dir), adapter(whole.recipe.output_dir)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_a_step_is_the_same_however_its_pairs_are_batched(recipe, name: str) -> None:
    """One batch of 8 with dropout; accumulated ones of 2, each cut by a limit of tokens."""
    options = {"training__loss_type": name, "training__max_steps": 2, "training__learning_rate": 1e-3,
               "method__lora_dropout": 0.3}  # fmt: skip
    if name == "robust":
        options["training__label_smoothing"] = 0.1
    adapters = []
    for size in (8, 2):
        sizes = {"training__per_device_train_batch_size": size, "training__gradient_accumulation_steps": 8 // size,
                 "training__max_tokens_per_micro_batch": 10_000 if size == 8 else 40,
                 "training__fast_paths": {"padding_free": size == 8}}  # fmt: skip
        loaded = recipe("llama", "preference", pairs(16), name=f"of-{size}", **options, **sizes)
        train(loaded)
        adapters.append(adapter(loaded.recipe.output_dir))
    for key, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][key], tensor, rtol=1e-3, atol=2e-5)


def test_the_reference_is_kept_beside_the_rows_and_in_the_run(recipe, tmp_path) -> None:
    loaded = recipe("llama", "preference", pairs(16), **OPTIONS)
    train(loaded)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("reference-*.npz")}
    assert len(kept) == 2  # training and validation rows
    train(loaded, overwrite=True)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("reference-*.npz")} == kept
    other = write_jsonl(tmp_path / "other.jsonl", pairs(7))
    found = evaluate_run(loaded.recipe.output_dir, str(other))
    assert found["eval_rows"] == 7 and found["eval_rewards_margins"] > 0
    (tmp_path / "runs" / "run" / "reference" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged") as damaged:
        evaluate_run(loaded.recipe.output_dir)
    assert "copy it back" in str(damaged.value)
    for file in (tmp_path / "runs" / "run" / "reference").iterdir():
        file.unlink()
    (tmp_path / "runs" / "run" / "reference").rmdir()
    with pytest.raises(UserError, match="reference/"):
        evaluate_run(loaded.recipe.output_dir)


def test_of_full_the_base_that_changed_is_no_reference(recipe, models, tmp_path) -> None:
    """Of what trained every weight nothing but the base says what it was before; its own rows have their values."""
    shutil.copytree(models("llama", "causal_lm"), tmp_path / "base")
    options = {**OPTIONS, "method": {"name": "full"}, "training__learning_rate": 1e-3, "training__max_steps": 1}
    loaded = recipe("llama", "preference", pairs(16), model=str(tmp_path / "base"), **options)
    train(loaded)
    other = write_jsonl(tmp_path / "other.jsonl", pairs(7))
    assert evaluate_run(loaded.recipe.output_dir, str(other))["eval_rows"] == 7
    file = tmp_path / "base" / "model.safetensors"
    save_file({name: value * 1.1 for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match="changed since training, and answers are compared with that model"):
        evaluate_run(loaded.recipe.output_dir, str(other))
    assert evaluate_run(loaded.recipe.output_dir)["eval_rows"] == 4


def test_a_merged_model_is_evaluated_where_its_loss_needs_no_reference(recipe, tmp_path) -> None:
    """It is saved as any causal model: what it was trained for is in the file beside it. DPO's reference is not."""
    other = str(write_jsonl(tmp_path / "other.jsonl", pairs(7)))
    for loss in ("simpo", "sigmoid"):
        options = {**OPTIONS, "training__loss_type": loss, "training__beta": 1.5, "training__max_steps": 1}
        run = train(recipe("llama", "preference", pairs(16), name=loss, **options)).output_dir
        merge_run(run, tmp_path / f"merged-{loss}", use_alone=False)
    of_run, of_model = (evaluate_run(one, other) for one in (tmp_path / "runs" / "simpo", tmp_path / "merged-simpo"))
    assert of_run.pop("eval_runtime") and of_model.pop("eval_runtime")
    assert of_model == pytest.approx(of_run, rel=1e-4, abs=1e-5)
    with pytest.raises(UserError, match="the loss sigmoid compares answers with the model before the first step"):
        evaluate_run(tmp_path / "merged-sigmoid", other)
    asked = str(write_jsonl(tmp_path / "asked.jsonl", [{"prompt": "the cat"}]))
    of_run, of_model = (next(iter(predict_run(tmp_path / one, asked))) for one in ("runs/sigmoid", "merged-sigmoid"))
    assert of_model["prediction"] == of_run["prediction"]


def test_what_was_fine_tuned_is_the_reference_of_what_goes_on_from_it(recipe) -> None:
    """`method.init_from` an adapter of causal_lm: the reference is the fine-tuned model, so the first loss is log 2."""
    tuned = recipe("llama", "causal_lm", name="tuned")
    train(tuned)
    recorder = Recorder()
    going = recipe("llama", "preference", pairs(16), name="going", method__init_from=tuned.recipe.output_dir)
    train(going, reporter=recorder)
    assert recorder.losses[0] == pytest.approx(0.693147, abs=1e-5)


def test_a_changed_scale_has_a_reference_of_its_own(recipe) -> None:
    """The same tensors with another `lora_alpha` are another model; of the first one, values are kept."""
    tuned = recipe("llama", "causal_lm", name="tuned", training__learning_rate=0.1)
    train(tuned)
    own = {"method__init_from": tuned.recipe.output_dir, "training__max_steps": 1}
    for alpha in (8, 64):
        recorder = Recorder()
        train(
            recipe("llama", "preference", pairs(16), name=f"a{alpha}", method__lora_alpha=alpha, **own),
            reporter=recorder,
        )
        assert recorder.losses[0] == pytest.approx(0.693147, abs=1e-5)


def test_two_processes_equal_one(recipe, tmp_path) -> None:
    """Five validation rows and eleven to train, so that shares are unequal; with dropout, stopped and gone on."""
    options = {**OPTIONS, "data__val_set_size": 5, "method__lora_dropout": 0.3, "training__adam_epsilon": 1e-3}
    size = "training__per_device_train_batch_size"
    alone, recorder = recipe("llama", "preference", pairs(16), name="alone", **options, **{size: 4}), Recorder()
    train(alone, reporter=recorder)
    own = {size: 2, "data__cache_dir": str(tmp_path / "of-both")}  # nothing that one process computed
    both = recipe("llama", "preference", pairs(16), name="both", **options, **own)
    going = {"kind": "train", "recipe": str(both.path)}
    using = {"kind": "evaluate", "run": both.recipe.output_dir}
    jobs = [{**going, "stop_at": 2}, {**going, "resume": True}, using]
    ((stopped, rest, evaluated),) = in_worlds(tmp_path, [(2, jobs)])
    assert len(stopped) < 4 and stopped + rest == pytest.approx(recorder.losses, rel=2e-6)
    one, other = adapter(alone.recipe.output_dir), adapter(both.recipe.output_dir)
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=2e-5)
    found = evaluate_run(alone.recipe.output_dir)
    del evaluated["eval_runtime"]
    assert evaluated == pytest.approx({key: found[key] for key in evaluated}, rel=1e-4, abs=1e-5)
