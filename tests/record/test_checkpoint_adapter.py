"""A checkpoint is used as a run is: what was evaluated at its step is what it gives."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from peftcli.adapters.loading import load_adapter
from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.record.checkpoint_adapter import checkpoint_adapter
from peftcli.training.run import train
from tests.command_line import Cli
from tests.recipes import CtrlC, Recorder, chat_rows, write_jsonl

EVERY_STEP = {"data__val_set_size": 4, "training__eval_steps": 1, "training__save_steps": 1, "training__max_steps": 6}


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


@pytest.mark.parametrize(
    "method", [{"name": "lora", "r": 4}, {"name": "full"}, {"name": "prefix_tuning", "encoder_hidden_size": 8}]
)
def test_an_unfinished_run_is_used_at_its_steps(recipe, method) -> None:
    loaded = recipe(method=method, training__learning_rate=0.05, training__greater_is_better=True,
                    training__save_total_limit=5, **EVERY_STEP)  # fmt: skip
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(at=4, evaluated=True))
    run = Path(str(loaded.recipe.output_dir))
    found = losses(run)
    best = max((step for step in found if step), key=lambda step: (found[step], -step))
    for which, step in (("last", 4), ("step-3", 3), ("000002", 2), ("best", best)):
        assert evaluate_run(run, opening=Opening(checkpoint=which))["eval_loss"] == found[step], which
    with pytest.raises(UserError, match=r"not finished(.|\n)*--checkpoint last"):
        evaluate_run(run)


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_longer_run_is_not_taken_for_the_shorter_one(recipe, tmp_path: Path, cli: Cli, evaluated: bool) -> None:
    """The adapter of the finished run lies there until the longer one is done: it was taken for the best."""
    more = {"training__learning_rate": 0.01, "training__lr_scheduler_type": "constant"}
    first = recipe(**{**EVERY_STEP, **more, "training__max_steps": 2})
    train(first)
    run = Path(str(first.recipe.output_dir))
    longer = recipe(**{**EVERY_STEP, **more})
    with pytest.raises(Stopped):
        train(longer, resume=True, reporter=CtrlC(at=5 if evaluated else 3, evaluated=evaluated))
    found = losses(run)
    best = min((step for step in found if step), key=lambda step: (found[step], step))
    assert (run / "adapter").is_dir() and not (run / "summary.json").exists()
    assert evaluate_run(run, opening=Opening(checkpoint="best"))["eval_loss"] == pytest.approx(found[best], rel=1e-6)
    assert best > 2 or not evaluated
    for command in ("merge", "export", "inspect-adapter"):
        output = () if command == "inspect-adapter" else ("-o", tmp_path / command)
        done = cli(command, run, *output)
        assert done.code == 2 and "is not finished" in done.err and "--checkpoint last" in done.err, (command, done.err)
    for origin in (run, run / "adapter"):
        heard, once = Recorder(), {**EVERY_STEP, "training__max_steps": 1}
        train(recipe(name=f"from-{origin.name}", **once, method__init_from=str(origin)), reporter=heard)
        said = any("method.init_from takes its adapter of before" in note for note in heard.notes)
        assert said == (origin == run)  # who names the adapter means it


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_command_takes_checkpoints_of_an_interrupted_run(
    recipe, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    own = {"r": 4} if method == "lora" else {}
    loaded = recipe(method={"name": method, **own}, training__max_new_tokens=3, **EVERY_STEP)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(at=2, evaluated=True))
    run, rows = str(loaded.recipe.output_dir), str(write_jsonl(tmp_path / "in.jsonl", chat_rows(2)))
    commands = {
        "eval": [], "predict": ["-i", rows], "merge": ["-o", tmp_path / "merged", "--no-verify"], "chat": [],
        "export": ["-o", tmp_path / "exported"], "inspect-adapter": [],
    }  # fmt: skip
    for command, further in commands.items():
        if (method, command) != ("full", "inspect-adapter"):
            missing = cli(command, run, *further, "--checkpoint", "9")
            assert missing.code == 2 and "step-1, step-2, last, best" in missing.err, command
        done = cli(command, run, *further, "--checkpoint", "last")
        if method == "full" and command in ("export", "inspect-adapter"):
            assert done.code == 2 and "peft merge" in done.err and "peftcli-" not in done.err, done.err
        else:
            assert done.code == 0, done.err


@pytest.mark.parametrize("which", ["best", "step-1"])
def test_a_finished_run_of_a_whole_model(recipe, which: str) -> None:
    loaded = recipe(method={"name": "full"}, training__learning_rate=0.05, training__save_total_limit=9, **EVERY_STEP)
    summary = train(loaded)
    expected = losses(Path(summary.output_dir))[1] if which == "step-1" else (summary.eval or {})["eval_loss"]
    assert evaluate_run(summary.output_dir, opening=Opening(checkpoint=which))["eval_loss"] == pytest.approx(
        expected, rel=1e-6
    )


def test_predictions_merges_and_exports_of_a_checkpoint(recipe, tmp_path: Path, cli: Cli) -> None:
    loaded = recipe(
        training__learning_rate=0.05, training__max_new_tokens=3, training__save_total_limit=9, **EVERY_STEP
    )
    train(loaded)
    run, rows = Path(str(loaded.recipe.output_dir)), write_jsonl(tmp_path / "in.jsonl", chat_rows(2))
    early = list(predict_run(run, str(rows), opening=Opening(checkpoint="step-1")))
    assert early != list(predict_run(run, str(rows)))
    assert list(predict_run(run, str(rows), opening=Opening(checkpoint="best"))) == list(predict_run(run, str(rows)))
    printed = cli("predict", run, "-i", rows, "--checkpoint", "1").out
    assert [json.loads(line) for line in printed.splitlines()] == early
    assert merge_run(run, tmp_path / "merged", checkpoint="step-1", use_alone=False).verified
    for target, output in (("hf-peft", "exported"), ("vllm", "served"), ("gguf-lora", "adapter.gguf")):
        done = cli("export", run, "-o", tmp_path / output, "--checkpoint", "step-1", "--to", target)
        assert done.code == 0 and "note: the adapter of step 1\n" in done.err, done.err
    state = checkpoint_adapter(run, loaded.recipe, "step-1").state
    exported = load_adapter(tmp_path / "exported").state
    assert state.keys() == exported.keys() and all(state[key].equal(exported[key]) for key in state)


@pytest.mark.parametrize("command", [("eval",), ("merge", "-o", "m"), ("export", "-o", "e"), ("predict", "-i", "DATA")])
def test_a_checkpoint_that_is_not_there_is_named(recipe, cli: Cli, command: tuple[str, ...]) -> None:
    loaded = recipe(training__max_steps=2, training__save_steps=1)
    train(loaded)
    name, *given = [loaded.recipe.data.path if part == "DATA" else part for part in command]
    for which in ("step-9", "first", "../step-1", "", "-1"):
        done = cli(name, loaded.recipe.output_dir, *given, f"--checkpoint={which}")
        assert done.code == 2 and "there are: step-1, step-2, last, best" in done.err, done.err
