"""`peft init`: rows decide format and task, the recipe says why and validates; without a terminal flags are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from peftcli.cli.app import build_app
from peftcli.console.starting_views import questions
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from tests.command_line import Cli
from tests.recipes import class_rows, write_jsonl


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talks() -> Path:
    turns = [{"role": "user", "content": "is it red"}, {"role": "assistant", "content": "red"}]
    return write_jsonl(Path("talks.jsonl"), [{"messages": turns} for _ in range(12)])


def test_a_chat_file_becomes_a_commented_recipe_that_validates(cli: Cli, models) -> None:
    done = cli(
        "init", "--model", models("llama", "causal_lm"), "--data", talks(), "--memory", "24GB", "-o", "chat.yaml"
    )
    assert done.code == 0, done.err
    recipe = load_recipe("chat.yaml", [], NAMES).recipe
    assert recipe.data is not None
    assert (recipe.task, recipe.data.format, recipe.method.name) == ("causal_lm", "messages", "lora")
    assert recipe.training.learning_rate is not None
    text = Path("chat.yaml").read_text()
    assert "messages[].role/content -> messages" in text
    assert "Test: peft compare chat.yaml" in " ".join(text.replace("#", " ").split())  # comments are wrapped
    assert cli("validate", "chat.yaml").code == 0


def test_rows_with_labels_are_for_classification_and_a_method_that_was_asked_for_is_kept(cli: Cli, models) -> None:
    data = write_jsonl(Path("rows.jsonl"), class_rows(24))
    done = cli("init", "--model", models("bert", "sequence_classification"), "--data", data, "--method", "adapter")
    assert done.code == 0, done.err
    recipe = load_recipe("recipe.yaml", [], NAMES).recipe
    assert (recipe.task, recipe.method.name) == ("sequence_classification", "adapter")
    assert recipe.training.learning_rate is None  # the method's own


def test_a_model_that_is_not_here_gets_a_recipe_without_advice(cli: Cli) -> None:
    done = cli("init", "--model", "meta-llama/Llama-3.1-8B", "--data", talks(), "-o", "hub.yaml")
    assert done.code == 0, done.err
    assert "nothing is recommended" in Path("hub.yaml").read_text()
    assert load_recipe("hub.yaml", [], NAMES).recipe.method.name == "lora"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--model M and --data FILE must be given"),
        (["--model", "org/name"], "--data FILE must be given"),
        (["--data", "talks.jsonl"], "--model M must be given"),
        (["--model", "org/name", "--data", "gone.jsonl"], "gone.jsonl"),
        (["--model", "./gone", "--data", "talks.jsonl"], "gone"),
        (
            ["--model", "org/name", "--data", "talks.jsonl", "--task", "token_classification"],
            "the rows are for causal_lm",
        ),
        (["--model", "org/name", "--data", "talks.jsonl", "--task", "poetry"], "there is no such task"),
        (["--model", "org/name", "--data", "talks.jsonl", "--method", "lorra"], "lorra"),
        (["--model", "org/name", "--data", "talks.jsonl", "--memory", "much"], "is not a size"),
        (["--model", "", "--data", "talks.jsonl"], "--model is empty"),
        (["--model", "org/name", "--data", " "], "--data is empty"),
        (["--model", "org/name", "--data", "broken.jsonl"], "broken.jsonl:1: no row can be read; the first error: "),
        (["--model", "org/name", "--data", "empty.jsonl"], "empty.jsonl holds no rows"),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_nothing_is_written(cli: Cli, flags: list[str], said: str) -> None:
    talks()
    Path("broken.jsonl").write_text("{a\n")
    Path("empty.jsonl").touch()
    done = cli("init", *flags)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not Path("recipe.yaml").exists()


def test_a_recipe_that_exists_is_left_alone(cli: Cli) -> None:
    Path("recipe.yaml").write_text("mine")
    assert cli("init", "--model", "org/name", "--data", talks()).code == 2
    assert Path("recipe.yaml").read_text() == "mine"


def test_odd_names_of_columns_and_files_make_a_recipe_that_validates(cli: Cli) -> None:
    odd = dict.fromkeys(["\a", "n\x85k: v", "l\u2028k: v", "c\n# d"], "x")
    write_jsonl(Path("train-1.jsonl"), [{"instruction": "a", "output": "b", **odd}] * 4)
    done = cli("init", "--model", "org/name", "--data", "train-*.jsonl")
    assert done.code == 0, done.err
    assert load_recipe("recipe.yaml", [], NAMES).recipe.output_dir == "runs/train"


def test_what_no_option_says_is_asked_until_the_answer_can_be_used(models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "can_ask", lambda: True)  # input here is a text, not a terminal
    talks()
    answers = [
        "./gone", models("llama", "causal_lm"),
        "gone.jsonl", "talks.jsonl",
        "poetry", "",  # Enter takes what the rows are for
        "lorra", "ia3",
        "much", "24GB",
    ]  # fmt: skip
    done = CliRunner().invoke(build_app(), ["init", "-o", "asked.yaml"], input="".join(f"{each}\n" for each in answers))
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    for asked in ("Model (a hub id", "Data (a file", "Task (", "[causal_lm]", "Method [recommended]", "[unknown]"):
        assert asked in said
    for wrong in ("gone.jsonl", "one of: causal_lm", "one of: recommended, lora", "is not a size"):
        assert wrong in said
    recipe = load_recipe("asked.yaml", [], NAMES).recipe
    assert recipe.data is not None
    assert (recipe.task, recipe.method.name, recipe.data.path) == ("causal_lm", "ia3", "talks.jsonl")
    assert "wrote asked.yaml next peft inspect asked.yaml peft train asked.yaml" in said


def test_only_what_is_missing_is_asked(models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "can_ask", lambda: True)
    typed = ["init", "--model", str(models("llama", "causal_lm")), "--data", str(talks()), "--memory", "24GB"]
    done = CliRunner().invoke(build_app(), typed, input="\n\n")
    assert done.exit_code == 0 and "Model (" not in done.output and "Memory" not in done.output
    assert load_recipe("recipe.yaml", [], NAMES).recipe.method.name == "lora"  # what is recommended


def test_what_the_recommendation_remarks_is_written_down(cli: Cli, models) -> None:
    llama = models("llama", "causal_lm")
    done = cli("init", "--model", llama, "--data", talks(), "--memory", "10KB", "-o", "small.yaml")
    assert done.code == 0, done.err
    text = " ".join(Path("small.yaml").read_text().replace("#", " ").split())
    assert "not even one row" in text
