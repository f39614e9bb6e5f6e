"""The commands of README and docs, executed on a tiny model in a directory laid out as the pages assume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from glob import glob
from pathlib import Path

import pytest
import yaml

from peftcli.cli.app import main
from tests.docs.pages import PAGES, commands
from tests.starting.foreign_configs import CHAT_AXOLOTL
from tests.studies.report.records import example_comparison
from tests.tiny import save_tiny

PLACEHOLDERS = {
    "RECIPE": "recipe.yaml",
    "RUN": "runs/lora",
    "RUN_OR_STUDY": "runs/lora",
    "FILE": "articles.jsonl",
    "DIR": "made",
    "ADAPTER": "exported",
    "M": "model",
    "NAME": "lora",
}
LEFT_OUT = {
    ("export", "runs/chat"): "needs a causal model; tests/docs/test_newcomers_walk.py does that",
    ("init", "chat.jsonl"): "the same",
    ("chat",): "needs a causal model; tests/inference/chat does that",
    ("train", "trials/NAME/recipe.yaml"): "goes on with a trial; tests/studies/engine does that",
    ("--resume", "training.gradient_accumulation_steps=2"): "needs a run of 2 processes; tests/training/resuming",
    ("--num-processes",): "starts processes; cli/test_num_processes.py, tests/distributed and tests/matrix do that",
    ("compare", "--budget"): "trains for minutes; tests/studies/compare does that",
    ("compare", "--methods"): "trains for minutes; tests/studies/compare does that",
    ("sweep",): "trains for a minute; tests/studies/sweep does that, with --grid and --search",
    ("methods", "--check", "gain"): "needs the plug-in; tests/analysis does that",
    ("merge", "--requantize"): "needs a run on a 4-bit base; tests/merging does that",
}
"""Words of a command: why it is not executed here."""

Run = Callable[..., int]


def executable() -> list[tuple[str, ...]]:
    """Return the different commands with their placeholders filled in; those that only name a command are left out."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES:
        for words in commands(page):
            given = [word for word in words if not word.startswith("[") and word != "...]"]
            filled = [PLACEHOLDERS.get(word, word) for word in given]
            bare = (
                len(filled) == 1 and filled[0] not in ("methods", "plugins", "schema") and not filled[0].startswith("-")
            )
            if not bare and not any(set(some) <= set(filled) for some in LEFT_OUT):
                found[tuple(filled)] = None
    return list(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the files that the pages speak of: a model, data, recipes; nothing is trained yet."""
    path = tmp_path_factory.mktemp("pages")
    save_tiny(path / "model", "bert", "base")
    rows = [{"text": f"the {word} cat {n}", "label": word} for n in range(16) for word in ("red", "blue")]
    (path / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (path / "runs/compare").mkdir(parents=True)
    comparison = json.dumps(example_comparison().as_dict())
    (path / "runs/compare/comparison.json").write_text(comparison, encoding="utf-8")
    (path / "configs").mkdir()
    (path / "axolotl.yaml").write_text(CHAT_AXOLOTL.format(model="org/name"), encoding="utf-8")
    for file, output in (("configs/lora.yaml", "runs/lora"), ("recipe.yaml", "runs/recipe")):
        recipe = {
            "model": {"name_or_path": str(path / "model")},
            "task": "sequence_classification",
            "data": {"path": str(path / "articles.jsonl"), "val_set_size": 8, "cache_dir": str(path / "cache")},
            "method": {"name": "lora", "r": 4},
            "training": {"max_steps": 2, "per_device_train_batch_size": 8},
            "output_dir": output,
        }
        (path / file).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of it in which both recipes have been trained, with two more runs of the first."""
    path = tmp_path_factory.mktemp("trained") / "place"
    shutil.copytree(place, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for recipe in ("configs/lora.yaml", "recipe.yaml"):
            assert run("train", recipe, "--quiet") == 0
        assert run("export", "runs/lora", "-o", "exported") == 0
    for name in ("first", "second"):
        shutil.copytree(path / "runs" / "lora", path / "runs" / name)
    return path


def run(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_commands_are_found() -> None:
    found = executable()
    assert ("eval", "runs/lora") in found
    assert ("inspect", "recipe.yaml") in found
    assert len(found) >= 12


@pytest.mark.parametrize("words", executable(), ids=" ".join)
def test_a_command_of_the_pages_succeeds(
    words: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "place"
    shutil.copytree(trained, path)
    if words[0] == "train" and "--resume" not in words:
        shutil.rmtree(path / "runs")
    if words[0] == "init":  # it replaces no recipe
        (path / "recipe.yaml").unlink()
    monkeypatch.chdir(path)
    code = run(*(name for word in words for name in (sorted(glob(word)) if "*" in word else [word])))  # as a shell does
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert "Traceback" not in captured.err
