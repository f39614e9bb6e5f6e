"""What an environment variable holds may be a secret: files, trackers and messages have its name, never its value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.stored_recipe import load_stored_recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe, with_references
from peftcli.shown_text import hide, hide_nothing, shown
from peftcli.training.run import train

SECRET = "hf_SECRET/with:'signs"
RECIPE = """\
model: {name_or_path: org/model, revision: &r "${TOKEN}", new_special_tokens: ["<a>", "${TOKEN}"]}
task: causal_lm
data: {path: "${PLACE}/a.jsonl", validation: {path: "${PLACE}/b.jsonl"}, columns: {prompt: *r}}
method: {name: lora, r: 8}
training: {learning_rate: "${RATE}", max_steps: !!int "${STEPS}"}
seed: ${STEPS}
"""
VARIABLES = {"TOKEN": SECRET, "PLACE": "/data/of mine", "RATE": "5", "STEPS": "5"}


@pytest.fixture(autouse=True)
def _nothing_hidden() -> Iterator[None]:
    yield
    hide_nothing()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.replace('learning_rate: "${RATE}"', "learning_rate: !!float '${RATE}'"))
    return file


def test_a_stored_recipe_names_the_variables_and_means_the_same(file: Path) -> None:
    loaded = load_recipe(file, ["seed=${STEPS}", "method.lora_alpha=${STEPS}"], NAMES)
    text = dump_recipe(loaded.recipe, loaded.tree)
    assert SECRET not in text and "/data/of mine" not in text
    assert text.count("${TOKEN}") == 3 and text.count("${STEPS}") == 3 and text.count("${PLACE}") == 2
    (file.parent / "recipe.yaml").write_text(text)
    assert load_stored_recipe(file.parent / "recipe.yaml", NAMES).recipe == loaded.recipe
    assert SECRET not in json.dumps(with_references(loaded.recipe, loaded.tree))


def test_an_override_without_a_variable_is_written_as_it_is(file: Path) -> None:
    loaded = load_recipe(file, ["model.revision=main", "data={path: c.jsonl}"], NAMES)
    text = dump_recipe(loaded.recipe, loaded.tree)
    assert "revision: main" in text and "path: c.jsonl" in text and "PLACE" not in text


def test_a_variable_that_is_unset_later_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_recipe(file, [], NAMES)
    stored = file.parent / "recipe.yaml"
    stored.write_text(dump_recipe(loaded.recipe, loaded.tree))
    monkeypatch.delenv("PLACE")
    assert load_stored_recipe(stored, NAMES).recipe.data.path == "${PLACE}/a.jsonl"  # not needed to predict
    monkeypatch.delenv("TOKEN")
    with pytest.raises(UserError, match=r"recipe\.yaml:\d+: model\.revision: the environment variable TOKEN is not"):
        load_stored_recipe(stored, NAMES)


def test_messages_have_the_name(tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_SECRET")
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {name_or_path: './${MY_TOKEN}'}\ntask: '${MY_TOKEN}'\ntraining: {learning_rate: '${MY_TOKEN}'}"
    )
    for options in ([], ["--json"]):
        done = cli("validate", file, *options)
        assert done.code == 2 and "hf_SECRET" not in done.out + done.err
        assert (done.out + done.err).count("${MY_TOKEN}") >= 3


def test_what_is_hidden() -> None:
    for name, value in [
        ("RATE", "0.001"),
        ("HOME_OF_DATA", "/home/me/data"),
        ("LONG", "8jkl2hf8sd"),
        ("API_KEY", "abcd"),
    ]:
        hide(name, value)
    assert shown("0.001 /home/me/data 8jkl2hf8sd abcd") == "0.001 /home/me/data ${LONG} ${API_KEY}"
    assert shown("get https://me:pw@host/x and http://host:80/@y") == "get https://***@host/x and http://host:80/@y"


def test_no_file_of_a_run_has_the_value(recipe, monkeypatch: pytest.MonkeyPatch, recorder) -> None:
    monkeypatch.setenv("TOKEN", "hf_SECRET")
    loaded = load_recipe(recipe(training__max_steps=1).path, ["model.new_special_tokens=['${TOKEN}']"], NAMES)
    train(loaded)
    run = Path(loaded.recipe.output_dir)
    holding = [
        str(one.relative_to(run)) for one in run.rglob("*") if one.is_file() and b"hf_SECRET" in one.read_bytes()
    ]
    assert [one for one in holding if "tokenizer" not in one] == []  # a token of the vocabulary is asked for
    train(loaded, reporter=recorder)
    assert "finished" in recorder.notes[0]
