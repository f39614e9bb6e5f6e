"""What `peft validate` finds around a recipe: the model's config, the data's first rows, directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftcli.errors import Problem, UserError
from peftcli.names import NAMES
from peftcli.preflight import check_surroundings
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe

RECIPE = """\
model:
  name_or_path: base
task: sequence_classification
data:
  path: train.jsonl
method:
  name: lora
  r: 4
output_dir: out
"""
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}

Check = Callable[..., list[Problem]]


def save_config(folder: Path, config: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Return a function that checks the recipe with overrides, in a directory with a model and data."""
    monkeypatch.chdir(tmp_path)
    save_config(Path("base"), BERT)
    Path("train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")

    def run(*overrides: str) -> list[Problem]:
        return check_surroundings(load_recipe("r.yaml", overrides, NAMES), NAMES)

    return run


def test_nothing_wrong(check: Check) -> None:
    assert check() == []
    assert check("model.name_or_path=org/on-the-hub", "data.path=org/rows") == []


@pytest.mark.parametrize(
    ("config", "overrides", "key", "words"),
    [
        ("{", (), "model.name_or_path", "is not JSON"),
        ("[]", (), "model.name_or_path", "expected an object"),
        ({}, (), "model.name_or_path", "no model_type"),
        ({"model_type": "brt"}, (), "model.name_or_path", "knows no model_type 'brt'"),
        (BERT, ("task=causal_lm", "data.path=org/rows"), "task", "a bert model cannot do causal_lm: it is an encoder"),
        (BERT, ("task=seq2seq_lm", "data.path=org/rows"), "task", "it is no encoder-decoder"),
        ({"model_type": "t5"}, ("task=causal_lm", "data.path=org/rows"), "task", "it is an encoder-decoder"),
        ({"model_type": "gpt2", "n_layer": 2}, ("task=seq2seq_lm", "data.path=org/rows"), "task", "no encoder-decoder"),
        (BERT, ("method.layers_to_transform=[0, 2]",), "method.layers_to_transform", "the model has 2 blocks"),
        (
            {"model_type": "gpt2", "n_layer": 2},
            ("task=causal_lm", "data.path=org/rows", "data.chat_template=qwen"),
            "data.chat_template",
            "there is no chat template and no file",
        ),
        (BERT, ("method.r=33",), "method.r", "33"),
        (BERT, ("model.revision=main",), "model.revision", "for models of the hub"),
    ],
)
def test_model_config(check: Check, config: Any, overrides: tuple[str, ...], key: str, words: str) -> None:
    save_config(Path("base"), config)
    (problem,) = check(*overrides)
    assert problem.key == key
    assert words in problem.message


def test_model_directory(check: Check) -> None:
    (problem,) = check("model.name_or_path=./bsae")
    assert problem.file == "override model.name_or_path=./bsae"
    assert "base" in str(problem.suggestion)
    Path("base/tokenizer.json").unlink()
    (problem,) = check()
    assert problem.line == 2 and "no tokenizer" in problem.message
    Path("base/config.json").unlink()
    (problem,) = check()
    assert problem.line == 2 and "no config.json" in problem.message


@pytest.mark.parametrize(
    ("rows", "overrides", "words"),
    [
        ("", (), "empty"),
        ("\n\n", (), "empty"),
        ('{"words": "a"}\n', (), "no format fits"),
        ('{"text": "a", "label": "x"}\n', ("data.columns={text: content}",), "no column 'content'"),
        ('{"text": "a"}\n', ("data.format=classification",), "needs the column label"),
    ],
)
def test_data_rows(check: Check, rows: str, overrides: tuple[str, ...], words: str) -> None:
    Path("train.jsonl").write_text(rows, encoding="utf-8")
    (problem,) = check(*overrides)
    assert words in problem.message


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("data.path=train.json", "data.path", "no file or directory"),
        ("data.path=*.csv", "data.path", "nothing matches"),
        ("data.path=package:surely-not-there/x", "data.path", "not installed"),
        ("data.validation={path: valid.jsonl}", "data.validation.path", "no file or directory"),
        ("method.init_from=./runs/old", "method.init_from", "no file or directory"),
        ("method.init_from=base", "method.init_from", "neither a run nor an adapter"),
        ("output_dir=train.jsonl", "output_dir", "is a file"),
    ],
)
def test_places(check: Check, override: str, key: str, words: str) -> None:
    (problem,) = check(override)
    assert problem.key == key, str(problem)
    assert words in problem.message


def test_several_problems_at_once(check: Check) -> None:
    found = check("model.name_or_path=./gone", "data.path=gone.jsonl", "output_dir=train.jsonl")
    assert [problem.key for problem in found] == ["model.name_or_path", "data.path", "output_dir"]


def test_broken_first_rows_are_left_to_training(check: Check) -> None:
    Path("train.jsonl").write_text("{broken\n", encoding="utf-8")
    assert check() == []


def test_class_folders(check: Check) -> None:
    for label in ("warm", "cold"):
        folder = Path("folders") / label
        folder.mkdir(parents=True)
        (folder / "1.txt").write_text("a text")
    assert check("data.path=folders") == []


SIZES = ["hidden_size", "num_hidden_layers", "max_position_embeddings", "n_layer", "n_embd", "num_attention_heads"]
keys = st.sampled_from(
    [*SIZES, "model_type", "architectures", "is_decoder", "is_encoder_decoder", "auto_map", "text_config"]
)
families = st.sampled_from(["bert", "gpt2", "t5", "xglm"])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["bert", "gpt2", "t5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=6,
)
configs = st.dictionaries(keys, json_values, max_size=6)
methods = st.sampled_from(registry.names())


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(
    json_values | st.dictionaries(keys, json_values, max_size=6), methods, st.text(max_size=12), st.text(max_size=12)
)
def test_any_config_and_any_path(check: Check, config: Any, method: str, path: str, output: str) -> None:
    """Odd surroundings give problems, never another exception."""
    save_config(Path("base"), json.dumps(config))
    overrides = [
        f"method={{name: {method}}}",
        f"data.path={json.dumps(path)}",
        f"output_dir={json.dumps(output)}",
    ]
    try:
        problems = check(*overrides)
    except UserError as error:
        problems = list(error.problems)
    assert all(problem.message and str(problem) for problem in problems)


MISTAKES = """\
model:
  name_or_path: ./nowhere
  dtipe: auto
task: sequence_classification
data:
  path: missing.jsonl
  max_lenght: 64
method:
  name: lora
  rr: 8
training:
  learning_rate: -1
"""


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("", "", ["model.name_or_path", "model.dtipe", "data.path"]),
        ("task: sequence", "task: sekwence", ["model.name_or_path", "model.dtipe", "task", "data.path"]),
        ("  name_or_path: ./nowhere\n", "", ["model.name_or_path", "model.dtipe", "data.path"]),
        ("path: missing.jsonl", "path: [3]", ["model.name_or_path", "model.dtipe", "data.path"]),
        ("path: missing.jsonl", "path: ''", ["model.name_or_path", "model.dtipe", "data.path"]),
        ("path: missing.jsonl", "datasets: [{}]", ["model.name_or_path", "model.dtipe", "data.datasets.0.path"]),
        ("name: lora", "name: lorra", ["model.name_or_path", "model.dtipe", "data.path"]),
    ],
)
def test_missing_files_are_shown_with_the_mistakes_of_the_recipe(
    check: Check, old: str, new: str, keys: list[str]
) -> None:
    """One round of corrections, not two: what a recipe names is looked up even where the recipe has mistakes."""
    Path("wrong.yaml").write_text(MISTAKES.replace(old, new) if old else MISTAKES, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe("wrong.yaml", [], NAMES, surroundings=check_surroundings)
    named = "method.name" if "lorra" in new else "method.rr"
    assert [problem.key for problem in caught.value.problems] == [
        *keys,
        "data.max_lenght",
        named,
        "training.learning_rate",
    ]
    lines = [problem.line for problem in caught.value.problems if problem.line]
    assert lines == sorted(lines)


def test_rows_are_not_judged_where_their_format_is_in_doubt(check: Check) -> None:
    Path("odd.jsonl").write_text('{"x": 1}\n', encoding="utf-8")
    text = RECIPE.replace("train.jsonl", "odd.jsonl")

    def keys(more: str) -> list[str | None]:
        Path("wrong.yaml").write_text(text.replace("data:\n", f"data:\n  {more}\n"), encoding="utf-8")
        with pytest.raises(UserError) as caught:
            load_recipe("wrong.yaml", [], NAMES, surroundings=check_surroundings)
        return [problem.key for problem in caught.value.problems]

    assert keys("colums: {text: x}") == ["data.colums"]
    assert keys("max_lenght: 3") == ["data.max_lenght", "data.path"]


def test_a_path_that_lies_beside_the_recipe_is_named(check: Check) -> None:
    Path("job").mkdir()
    Path("job/rows.jsonl").write_text(Path("train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    Path("job/r.yaml").write_text(RECIPE.replace("train.jsonl", "rows.jsonl"), encoding="utf-8")
    (problem,) = check_surroundings(load_recipe("job/r.yaml", [], NAMES), NAMES)
    assert problem.suggestion is not None and "working directory" in problem.suggestion
    assert str(Path("job/rows.jsonl")) in problem.suggestion


def test_an_unknown_metric_is_one_problem_and_its_key_is_named_once(check: Check) -> None:
    assert check() == []
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml", ["training.metrics=[acc]"], NAMES, surroundings=check_surroundings)
    (problem,) = caught.value.problems
    assert str(problem).startswith("override training.metrics=[acc]: training.metrics.0: there is no metric 'acc'")


def test_metrics_whose_package_is_missing(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = ("task=token_classification", "data.path=org/rows")
    monkeypatch.setattr("peftcli.tasks.metric_table.find_spec", lambda _name: None)
    (problem,) = check(*tags, "training.metrics=[accuracy, f1]")
    assert (
        problem.key == "training.metrics.1"
        and "needs the package" in problem.message
        and "pip install" in str(problem.suggestion)
    )
