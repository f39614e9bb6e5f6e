"""A whole training: what it leaves, losses that do not depend on how a batch is computed, resume, stopping."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import open_run
from peftcli.inference.predict_run import predict_run
from peftcli.training.run import train
from tests.moments import peft_with_signal, signal_at
from tests.recipes import CtrlC, Recorder, class_rows, write_jsonl


def entries(run: str | Path) -> list[str]:
    return sorted(path.name for path in Path(run).iterdir())


def lines(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def adapter(run: str | Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def test_a_causal_run_leaves_what_was_promised(recipe, recorder) -> None:
    loaded = recipe(data__val_set_size=4)
    out = Path(loaded.recipe.output_dir)
    summary = train(loaded, reporter=recorder)
    assert entries(out) == ["adapter", "checkpoints", "metrics.jsonl", "plots", "recipe.yaml", "summary.json"]
    assert entries(out / "checkpoints") == ["step-000003", "step-000006"]
    assert entries(out / "checkpoints" / "step-000003") == ["manifest.json", "state.json", "state.safetensors"]
    saved = json.loads((out / "summary.json").read_text())
    assert saved == summary.as_dict() and saved["status"] == "finished"
    assert saved["eval"]["eval_loss"] < saved["eval_before"]["eval_loss"]
    assert saved["peak_memory_bytes"] > 1e7
    trained = [line for line in lines(out) if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
    keys = "step epoch loss learning_rate grad_norm tokens tokens_per_second time"
    assert set(trained[0]) == set(keys.split())
    assert recorder.facts["rows"].startswith("12 train, 4 validation")
    assert recorder.summary is summary


def test_eval_repeats_the_summary_and_predict_keeps_the_order(recipe, tmp_path) -> None:
    loaded = recipe(data__val_set_size=4, training__max_new_tokens=5)
    summary = train(loaded)
    again = evaluate_run(loaded.recipe.output_dir)
    assert again["eval_loss"] == summary.eval["eval_loss"]
    prompts = [{"prompt": "the cat " + "and " * (i % 7)} for i in range(9)]
    together = list(predict_run(loaded.recipe.output_dir, str(write_jsonl(tmp_path / "in.jsonl", prompts))))
    assert len(together) == 9 and set(together[0]) == {"prediction", "scores", "finish_reason"}
    for index in (0, 6):  # padding changes nothing
        alone = write_jsonl(tmp_path / f"{index}.jsonl", [prompts[index]])
        (one,) = predict_run(loaded.recipe.output_dir, str(alone))
        assert one["prediction"] == together[index]["prediction"]
        assert one["scores"]["mean_logprob"] == pytest.approx(together[index]["scores"]["mean_logprob"], abs=1e-4)


def test_eval_of_a_recipe_is_the_untrained_base(recipe) -> None:
    loaded = recipe("bert", "sequence_classification", data__val_set_size=6)
    summary = train(loaded)
    base = evaluate_run(loaded.path)
    assert base["eval_loss"] == pytest.approx(summary.eval_before["eval_loss"], rel=1e-6)
    given = write_jsonl(Path(loaded.path).parent / "test.jsonl", class_rows(9))
    assert evaluate_run(loaded.recipe.output_dir, str(given))["eval_rows"] == 9


@pytest.mark.parametrize(
    ("family", "task"), [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("bert", "sequence_classification")]
)
def test_losses_do_not_depend_on_how_a_step_is_computed(recipe, family, task) -> None:
    ways = {
        "whole": {"training__per_device_train_batch_size": 8},
        "accumulated": {"training__per_device_train_batch_size": 4, "training__gradient_accumulation_steps": 2},
        "by tokens": {"training__per_device_train_batch_size": 8, "training__max_tokens_per_micro_batch": 20},
        "checkpointed": {"training__per_device_train_batch_size": 8, "training__gradient_checkpointing": True},
        "prefetched": {"training__per_device_train_batch_size": 8, "training__dataloader_num_workers": 1},
    }
    losses, weights = {}, {}
    for name, options in ways.items():
        recorder = Recorder()
        loaded = recipe(family, task, name=name.replace(" ", ""), **options)
        train(loaded, reporter=recorder)
        losses[name], weights[name] = recorder.losses, adapter(loaded.recipe.output_dir)
    assert losses["whole"][-1] < losses["whole"][0]
    for name in ways:
        assert losses[name] == pytest.approx(losses["whole"], abs=2e-5), name
        for key, value in weights["whole"].items():
            # Adam turns the sign of a vanishing gradient into a whole step, so weights agree less closely than losses
            torch.testing.assert_close(weights[name][key], value, rtol=1e-2, atol=2e-3)


def test_a_step_equals_plain_cross_entropy_over_the_whole_batch(recipe, recorder) -> None:
    """The first loss and gradient norm, against transformers' own loss on the same 8 rows."""
    from transformers import AutoModelForCausalLM

    from peftcli.data.rows.padding import collate

    loaded = recipe(training__per_device_train_batch_size=4, training__gradient_accumulation_steps=2,
                    training__max_steps=2, method={"name": "full"})  # fmt: skip
    train(loaded, reporter=recorder)
    from peftcli.assembly.recipe_data import prepare_data
    from peftcli.distributed.processes import World
    from peftcli.models.load.tokenizers import load_tokenizer
    from peftcli.training.step_plan import make_plan

    opened = open_run(loaded.recipe.output_dir)
    tokenizer = load_tokenizer(loaded.recipe.model)
    from peftcli.models.read_anatomy import read_anatomy

    data = prepare_data(loaded, tokenizer, read_anatomy(opened.model), World(torch.device("cpu")))
    from peftcli.data.rows.batching import epoch_batches

    assert make_plan(loaded.recipe.training, len(data.train), 1).step_rows == 8
    first = epoch_batches(data.train, 8, seed=loaded.recipe.seed, epoch=0)[0]
    model = AutoModelForCausalLM.from_pretrained(loaded.recipe.model.name_or_path, dtype=torch.float32)
    loss = model(**collate([data.train[i] for i in first], tokenizer, "text")).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert recorder.losses[0] == pytest.approx(loss.item(), abs=1e-5)
    assert recorder.steps[0].grad_norm == pytest.approx(norm.item(), rel=1e-3)


RESUME = {
    "data__val_set_size": 4,
    "method__lora_dropout": 0.2,
    "training__max_steps": 10,
    "training__eval_steps": 3,
    "training__save_steps": 4,
    "training__logging_steps": 3,
    "training__lr_scheduler_type": "cosine",
    "training__warmup_steps": 3,
    "training__neftune_noise_alpha": 5.0,
}


def comparable(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in ("tokens_per_second", "time", "eval_runtime")}


@pytest.mark.core
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(recipe) -> None:
    whole = recipe(name="whole", **RESUME)
    train(whole)
    parts = recipe(name="parts", **RESUME)
    out = Path(parts.recipe.output_dir)
    with pytest.raises(Stopped, match="stopped after step 6 of 10"):
        train(parts, reporter=CtrlC(6))
    assert entries(out / "checkpoints")[-1] == "step-000006"
    with pytest.raises(UserError, match="--resume"):
        train(parts)
    recorder = Recorder()
    train(parts, resume=True, reporter=recorder)
    assert "continuing after step 6" in recorder.notes
    assert [comparable(a) for a in lines(out)] == [comparable(b) for b in lines(whole.recipe.output_dir)]
    one, other = adapter(out), adapter(whole.recipe.output_dir)
    assert all(torch.equal(one[key], other[key]) for key in other)
    keys = ("eval", "eval_before", "train_loss", "train_tokens", "best_step", "supervised_tokens")
    left, right = (json.loads((Path(d) / "summary.json").read_text()) for d in (out, whole.recipe.output_dir))
    for key in keys:
        assert drop_times(left[key]) == drop_times(right[key])


def drop_times(value: object) -> object:
    return {k: v for k, v in value.items() if "runtime" not in k} if isinstance(value, dict) else value


def test_a_finished_run_says_so_and_another_recipe_is_refused(recipe, recorder) -> None:
    loaded = recipe(training__max_steps=2)
    train(loaded)
    before = (Path(loaded.recipe.output_dir) / "summary.json").stat().st_mtime_ns
    assert train(loaded, reporter=recorder).status == "already_finished"
    assert (Path(loaded.recipe.output_dir) / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another recipe; they differ in training\.max_steps"):
        train(recipe(training__max_steps=3))
    assert train(recipe(training__max_steps=3), overwrite=True).steps == 3


def test_a_failed_overwrite_leaves_the_old_run(recipe) -> None:
    train(recipe(training__max_steps=2))
    broken = recipe(training__max_steps=2, data__path="/nowhere.jsonl")
    with pytest.raises(UserError):
        train(broken, overwrite=True)
    assert (Path(broken.recipe.output_dir) / "summary.json").is_file()


def test_early_stopping_keeps_the_best_adapter(recipe, recorder) -> None:
    loaded = recipe(data__val_set_size=4, training__max_steps=60, training__eval_steps=2, training__learning_rate=0.05,
                    training__early_stopping_patience=2, training__save_total_limit=1)  # fmt: skip
    summary = train(loaded, reporter=recorder)
    assert summary.status == "early_stopped" and summary.steps < 60
    assert summary.best_step == summary.steps - 4
    best = min(e["eval_loss"] for e in recorder.evaluations)
    assert summary.eval["eval_loss"] == best
    assert evaluate_run(loaded.recipe.output_dir)["eval_loss"] == best
    assert entries(Path(loaded.recipe.output_dir) / "checkpoints") == [f"step-{summary.steps:06d}"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize(
    ("moment", "reached"),
    [
        ("checkpoints/.partial-step-000006", 4),  # the third checkpoint is written, but not in its place
        pytest.param("checkpoints/.partial-best-000008", 6, marks=pytest.mark.slow),  # nor a best adapter
        (".partial-adapter", 12),  # trained, and about to leave its adapter
    ],
)
def test_kill_9_leaves_a_run_that_can_go_on(recipe, moment: str, reached: int) -> None:
    options = {**RESUME, "training__max_steps": 12, "training__save_steps": 2, "training__eval_steps": 4}
    loaded = recipe(name="killed", **options)
    out = Path(loaded.recipe.output_dir)
    done = peft_with_signal(signal.SIGKILL, "os.rename", moment, "train", loaded.path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert max(int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*")) == reached
    assert list(out.rglob(".partial*"))
    recorder = Recorder()
    summary = train(loaded, resume=True, reporter=recorder)
    assert summary.steps == 12 and summary.status == "finished"
    assert [record.step for record in recorder.steps] == list(range(reached + 1, 13))
    assert not list(out.rglob(".partial*"))


def test_sigint_ends_with_130_and_a_checkpoint(recipe, cli) -> None:
    loaded = recipe(name="stopped", training__max_steps=1000, training__save_strategy="no")
    out = Path(loaded.recipe.output_dir)
    with signal_at(signal.SIGINT, "open", "metrics.jsonl"):
        done = cli("train", loaded.path)
    assert done.code == 130, done.err
    assert "stopped after step 1 of 1000" in done.err and "Traceback" not in done.err
    assert entries(out / "checkpoints") == ["step-000001"]
    assert not (out / ".lock").exists()
