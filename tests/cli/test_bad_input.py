"""Bad input gets exit code 2 and a message with the place and the remedy, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Cli, Workspace, write_jsonl

RECIPE = """\
model:
  name_or_path: {model}
task: sequence_classification
data:
  path: {data}
  val_set_size: 0.25
  max_length: 16
method:
  name: lora
  r: 4
training:
  max_steps: 1
output_dir: {output}
"""

Change = Callable[[str], str]


def swap(old: str, new: str) -> Change:
    """Return a change of the recipe's text that must apply."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


TEXT_FAULTS: dict[str, tuple[Change, list[str]]] = {
    "misspelt key": (swap("  r: 4", "  rr: 4"), ["recipe.yaml:10", "method.rr", "r"]),
    "misspelt block": (swap("training:", "trainng:"), ["recipe.yaml:11", "trainng", "training"]),
    "misspelt value": (swap("name: lora", "name: loar"), ["recipe.yaml:9", "loar", "lora"]),
    "another method's key": (swap("  r: 4", "  num_virtual_tokens: 4"), ["recipe.yaml:10", "num_virtual_tokens"]),
    "another tool's key": (swap("  r: 4", "  lora_rank: 4"), ["recipe.yaml:10", "lora_rank", "r"]),
    "wrong type": (swap("  r: 4", "  r: four"), ["recipe.yaml:10", "method.r", "four"]),
    "out of range": (swap("val_set_size: 0.25", "val_set_size: -1"), ["recipe.yaml:6", "val_set_size", "-1"]),
    "not yaml": (swap("  r: 4", "  r: [4"), ["recipe.yaml:1"]),
    "tab": (swap("  r: 4", "\tr: 4"), ["recipe.yaml:10", "tab"]),
    "duplicate key": (swap("  r: 4", "  r: 4\n  r: 8"), ["recipe.yaml:11", "r", "twice"]),
    "empty": (lambda text: "", ["recipe.yaml", "empty"]),
    "a list": (lambda text: "- a\n- b\n", ["recipe.yaml"]),
}

WORLD_FAULTS: dict[str, tuple[Change, list[str]]] = {
    "missing model directory": (
        lambda text: text.replace("/bert\n", "/no-such-model\n"),
        ["no-such-model", "recipe.yaml:2"],
    ),
    "hub id without network": (
        lambda text: text.replace(text.splitlines()[1], "  name_or_path: someone/some-model"),
        ["someone/some-model", "HF_HUB_OFFLINE", "give a directory"],
    ),
    "missing package": (
        lambda text: text.replace(text.splitlines()[1], "  name_or_path: package:no-such-package/model"),
        ["no-such-package", "pip install"],
    ),
    "missing path in a package": (
        lambda text: text.replace(text.splitlines()[1], "  name_or_path: package:pytest/no-such-folder"),
        ["no-such-folder", "pytest"],
    ),
    "missing data file": (
        lambda text: text.replace("colours.jsonl", "colour.jsonl"),
        ["colour.jsonl", "recipe.yaml:5"],
    ),
    "missing column": (swap("  max_length: 16", "  max_length: 16\n  columns: {text: content}"), ["content", "text"]),
    "no such target": (swap("  r: 4", "  target_modules: [q_proj]"), ["q_proj", "query", "attn.q"]),
    "no such role": (swap("  r: 4", "  target_modules: [ffn.gate]"), ["ffn.gate", "ffn.up"]),
    "impossible task": (swap("sequence_classification", "seq2seq_lm"), ["seq2seq_lm", "bert"]),
}


@pytest.fixture
def recipe(workspace: Workspace, tmp_path: Path) -> Path:
    """Return a good recipe, of which each test spoils one thing."""
    file = tmp_path / "recipe.yaml"
    good = RECIPE.format(model=workspace.path / "bert", data=workspace.path / "colours.jsonl", output=tmp_path / "run")
    file.write_text(good, encoding="utf-8")
    return file


def check_refused(cli: Cli, recipe: Path, words: list[str], command: str = "train", *options: str) -> None:
    done = cli(command, recipe, *options)
    assert "Traceback" not in done.err
    assert done.code == 2, done.err
    assert [word for word in words if word not in done.out + done.err] == [], done.err
    assert not (recipe.parent / "run" / "summary.json").exists()


@pytest.mark.parametrize("fault", TEXT_FAULTS)
@pytest.mark.parametrize("command", ["train", pytest.param("validate", marks=pytest.mark.core)])
def test_fault_in_the_text(cli: Cli, recipe: Path, fault: str, command: str) -> None:
    change, words = TEXT_FAULTS[fault]
    recipe.write_text(change(recipe.read_text(encoding="utf-8")), encoding="utf-8")
    check_refused(cli, recipe, words, command)


@pytest.mark.core
@pytest.mark.parametrize("fault", WORLD_FAULTS)
def test_fault_in_what_the_recipe_names(cli: Cli, recipe: Path, fault: str) -> None:
    change, words = WORLD_FAULTS[fault]
    recipe.write_text(change(recipe.read_text(encoding="utf-8")), encoding="utf-8")
    check_refused(cli, recipe, words)


def test_all_mistakes_at_once(cli: Cli, recipe: Path) -> None:
    text = (
        recipe.read_text(encoding="utf-8")
        .replace("  r: 4", "  r: 0\n  loradropout: 1")
        .replace("max_steps", "max_step")
    )
    recipe.write_text(text, encoding="utf-8")
    check_refused(cli, recipe, ["recipe.yaml:10", "recipe.yaml:11", "lora_dropout", "recipe.yaml:13", "max_steps"])


def test_binary_file(cli: Cli, recipe: Path) -> None:
    recipe.write_bytes(bytes(range(256)))
    check_refused(cli, recipe, ["recipe.yaml"])


def test_missing_recipe(cli: Cli, tmp_path: Path) -> None:
    check_refused(cli, tmp_path / "absent.yaml", ["absent.yaml"])


def test_recipe_is_a_directory(cli: Cli, tmp_path: Path) -> None:
    check_refused(cli, tmp_path, [str(tmp_path)])


def test_bad_override(cli: Cli, recipe: Path) -> None:
    done = cli("train", recipe, "method.rank=4", "training.max_steps")
    assert done.code == 2
    assert "method.rank" in done.err and "training.max_steps" in done.err and "key=value" in done.err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["colours.jsonl", "empty"]),
        ([{"text": f"row {i}", "label": "one"} for i in range(8)], ["label", "one"]),
        ([{"words": "a"}], ["words"]),
    ],
    ids=["empty", "one label", "unknown columns"],
)
def test_bad_rows(cli: Cli, recipe: Path, workspace: Workspace, rows: list[dict[str, str]], words: list[str]) -> None:
    data = write_jsonl(recipe.parent / "colours.jsonl", rows)
    text = recipe.read_text(encoding="utf-8").replace(str(workspace.path / "colours.jsonl"), str(data))
    recipe.write_text(text, encoding="utf-8")
    check_refused(cli, recipe, words)


def test_broken_line_is_named(cli: Cli, recipe: Path, workspace: Workspace) -> None:
    data = recipe.parent / "broken.jsonl"
    data.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": \n', encoding="utf-8")
    text = recipe.read_text(encoding="utf-8").replace(str(workspace.path / "colours.jsonl"), str(data))
    recipe.write_text(text, encoding="utf-8")
    check_refused(cli, recipe, ["broken.jsonl", "2"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "no-such-run"],
        ["predict", "no-such-run", "--input", "x.jsonl"],
        ["merge", "no-such-run", "-o", "out"],
        ["count-params", "no-such-recipe.yaml"],
        ["count-params"],
        ["count-params", "--model", "no-such-model", "--task", "causal_lm", "--method", "lora"],
        ["methods", "no-such-method"],
        ["train"],
        ["frobnicate"],
        ["train", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_bad_arguments(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments)
    assert done.code == 2
    assert done.err.strip() and "Traceback" not in done.err
    assert done.out == ""


def test_paths_that_the_file_system_refuses(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / ("x" * 300), tmp_path / "file" / "below"):
        check_refused(cli, recipe, [str(output)[:40]], "train", "--output", str(output))
        done = cli("merge", output, "-o", tmp_path / "merged")
        assert done.code == 2 and "Traceback" not in done.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipe.yaml", "-o", ""], "--output is empty"),
        (["predict", "run", "--input", ""], "--input is empty"),
        (["predict", "run", "--text", " "], "--text is empty"),
        (["predict", "run", "--text", "a", "--input", "rows.jsonl"], "--text and --input both say what to predict"),
        (["predict", "run"], "--input FILE, standard input with `--input -`, or texts with --text"),
        (["predict", ".", "What is a boat?"], 'peft predict . --text "What is a boat?"'),
        (["runs", "no-such-directory"], "the directory no-such-directory does not exist"),
        (["runs", "rows.jsonl"], "the directory rows.jsonl is a file"),
        (["eval", "run", "--data", " "], "--data is empty"),
        (["predict", "run", "--input", "rows.jsonl", "-o", "."], "--output . is a directory"),
        (["predict", "run", "--input", "rows.jsonl", "-o", "./rows.jsonl"], "--output is the --input file"),
        (["inspect", "recipe.yaml", "--html", "."], "--html . is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_are_refused_before_anything_is_computed(
    cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(recipe.parent)
    Path("rows.jsonl").write_text("{}\n")
    done = cli(*arguments)
    assert done.code == 2 and message in done.err and done.out == ""
    assert Path("rows.jsonl").read_text() == "{}\n"


def test_one_label_points_at_the_data(cli: Cli, recipe: Path, workspace: Workspace) -> None:
    data = write_jsonl(recipe.parent / "one.jsonl", [{"text": f"row {i}", "label": "one"} for i in range(8)])
    text = recipe.read_text(encoding="utf-8").replace(str(workspace.path / "colours.jsonl"), str(data))
    recipe.write_text(text, encoding="utf-8")
    check_refused(
        cli, recipe, ["recipe.yaml:5: data.path: the training rows have only the label 'one'", "data.columns"]
    )


def test_other_directories_in_place_of_a_run(cli: Cli, workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "run/adapter").mkdir(parents=True)
    for file in ("recipe.yaml", "summary.json", "adapter/adapter_config.json"):
        (tmp_path / "run" / file).write_text("{}")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/adapter_config.json").write_text("{}")
    expected = {
        tmp_path / "rum": f"did you mean {tmp_path / 'run'}?",
        tmp_path / "run/recipe.yaml": f"name the run: {tmp_path / 'run'}",
        tmp_path / "run/adapter": f"name the run: {tmp_path / 'run'}",
        tmp_path / "alone": f"peft import {tmp_path / 'alone'}",
        workspace.path / "bert": "it is a model",
        workspace.path / "colours.jsonl": "it is a file",
        tmp_path: "it has no recipe.yaml",
    }
    for path, words in expected.items():
        for command in (["merge", "-o", tmp_path / "out"], ["predict", "-i", workspace.path / "colours.jsonl"]):
            done = cli(*command, path)
            headless = command[0] == "predict" and words == "it is a model"  # one with a head predicts
            expect = "it does not say for which task this model was saved" if headless else words
            assert done.code == 2 and expect in done.err and "Traceback" not in done.err, done.err
        if not (path / "adapter_config.json").is_file():  # `export` takes an adapter too
            done = cli("export", path, "-o", tmp_path / "out")
            assert done.code == 2 and words in done.err, done.err
