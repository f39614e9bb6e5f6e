"""`peft export` and `peft import`: a trained run goes out, comes back, and predicts the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import Cli, Workspace, write_jsonl


@pytest.fixture(scope="module")
def run(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a few steps."""
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import load_recipe
    from peftcli.training.run import train

    recipe = workspace.recipe("exported", training__max_steps=4)
    train(load_recipe(recipe, [], NAMES))
    return workspace.run("exported")


def test_a_run_goes_out_and_comes_back(run: Path, workspace: Workspace, cli: Cli, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "the cat red story 1"}, {"text": "a house blue story 2"}])
    before = cli("predict", run, "--input", rows).out
    done = cli("export", run, "-o", tmp_path / "hf", "--to", "hf-peft", "--json")
    assert done.code == 0 and done.json["kind"] == "hf-peft" and done.json["method"] == "lora"
    written = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert written == ["README.md", "adapter_config.json", "adapter_model.safetensors", "labels.json"]
    back = cli("import", tmp_path / "hf", "-o", tmp_path / "back")
    assert back.code == 0 and str(tmp_path / "back") in back.out and back.err == ""
    after = cli("predict", tmp_path / "back", "--input", rows)
    assert after.code == 0, after.err
    scores = [[list(json.loads(line)["scores"].values()) for line in out.splitlines()] for out in (before, after.out)]
    for ours, theirs in zip(*scores, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    evaluated = cli("eval", tmp_path / "back")
    assert evaluated.code == 2 and "data" in evaluated.err
    merged = cli("merge", tmp_path / "back", "-o", tmp_path / "merged", "--no-verify")
    assert merged.code == 0, merged.err
    assert (tmp_path / "merged/config.json").is_file()


@pytest.mark.parametrize(("typed", "meant"), [("llama.cpp", "gguf"), ("Peft", "hf-peft"), ("olama", "ollama")])
def test_a_target_by_another_name_is_answered_with_ours(cli: Cli, typed: str, meant: str) -> None:
    done = cli("export", "run", "-o", "out", "--to", typed)
    assert done.code == 2 and f"did you mean {meant}? choose one of: hf-peft" in done.err


def test_adapterhub_and_back(run: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", run, "-o", tmp_path / "hub", "--to", "adapterhub")
    assert done.code == 2 and "attn.o" in done.err and "--to hf-peft" in done.err
    assert not (tmp_path / "hub").exists()


def test_outputs_that_hold_something_are_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    for arguments in (("export", run), ("import", run / "adapter")):
        found = cli(*arguments, "-o", tmp_path / "taken")
        assert found.code == 2 and "is a directory that is not empty" in found.err
    assert (tmp_path / "taken/notes.txt").read_text() == "mine"
    file = cli("export", run, "-o", tmp_path / "taken/notes.txt")
    assert file.code == 2 and "is a file" in file.err
    (tmp_path / "empty").mkdir()
    assert cli("export", run, "-o", tmp_path / "empty").code == 0


def test_what_is_no_adapter_is_told(run: Path, cli: Cli, tmp_path: Path) -> None:
    nothing = cli("export", tmp_path / "none", "-o", tmp_path / "out")
    assert nothing.code == 2 and "there is no run directory" in nothing.err
    gone = cli("import", tmp_path / "none", "-o", tmp_path / "out")
    assert gone.code == 2 and "there is no directory" in gone.err
    own = cli("import", run / "adapter", "-o", tmp_path / "out")
    assert own.code == 2 and "adapter of this project already" in own.err
    (tmp_path / "half").mkdir()
    (tmp_path / "half/recipe.yaml").write_text("task: causal_lm\n")
    half = cli("export", tmp_path / "half", "-o", tmp_path / "out")
    assert half.code == 2 and "--resume" in half.err
    wrong = cli("export", run, "-o", tmp_path / "out", "--to", "pickle")
    assert wrong.code == 2
    as_lora = cli("export", run, "-o", tmp_path / "out", "--to", "adapterhub", "--as", "lora")
    assert as_lora.code == 2 and "--to hf-peft" in as_lora.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 999}, "vocab_size 999 instead of"),
        ({"hidden_size": 64}, "hidden_size 64 instead of 32"),
        ({"model_type": "roberta"}, "architecture roberta instead of bert"),
    ],
)
def test_another_base_is_refused_before_its_weights_are_read(
    changes: dict[str, object], message: str, run: Path, cli: Cli, tmp_path: Path
) -> None:
    recipe = run / "recipe.yaml"
    original = recipe.read_text()
    base = next(line.split(": ", 1)[1] for line in original.splitlines() if "name_or_path" in line)
    config = json.loads((Path(base) / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, **changes}))  # and no weights at all
    recipe.write_text(original.replace(base, str(other)))
    try:
        found = cli("predict", run, "--input", tmp_path / "rows.jsonl")
    finally:
        recipe.write_text(original)
    assert found.code == 2 and message in found.err, found.err


def test_a_plain_lora_and_what_it_loses(run: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", run, "-o", tmp_path / "lora", "--to", "lora", "--rank", 4, "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report["kind"] == "lora" and report["rank"] == 4 and report["kept"] == pytest.approx(1.0, abs=1e-4)
    assert report["after"]["eval_loss"] == pytest.approx(report["before"]["eval_loss"], abs=1e-4)
    assert report["before"].keys() == report["after"].keys() and report["left_out"] == []
    back = cli("import", tmp_path / "lora", "-o", tmp_path / "back")
    assert back.code == 0, back.err
    shown = cli("export", run, "-o", tmp_path / "cut", "--to", "lora", "--keep", 0.5)
    assert shown.code == 0 and "of the change's squared norm" in shown.out and "eval_loss" in shown.out
    assert "stored whole beside the LoRA: classifier" in shown.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rank", "4"], "--rank is for --to lora"),
        (["--keep", "0"], "--keep is for --to lora"),
        (["--to", "lora"], "needs --rank or --keep"),
        (["--to", "lora", "--rank", "4", "--as", "lora"], "--as lora does not go with --to lora"),
        (["--to", "lora", "--rank", "4000"], "the largest useful rank is 32"),
        (["--to", "lora", "--keep", "0"], "--keep 0 is not above 0"),
    ],
)
def test_a_lora_that_cannot_be_is_refused(given: list[str], message: str, run: Path, cli: Cli, tmp_path: Path) -> None:
    found = cli("export", run, "-o", tmp_path / "out", *given)
    assert found.code == 2 and message in found.err and not (tmp_path / "out").exists()
