"""What determines a run's result is compared when it goes on or is used: each change is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening
from peftcli.merging.run_to_merge import open_run_to_merge
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.record import run_inputs
from peftcli.record.run_inputs import RunInputs, differences
from peftcli.record.tensor_tree import load_tree, save_tree
from peftcli.training.resuming import compare_inputs
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder, chat_rows, write_jsonl

TEMPLATE = "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}"


@pytest.fixture
def own_recipe(recipe, models, tmp_path) -> Callable[..., LoadedRecipe]:
    """A recipe on a copy of the base and with validation rows of its own, which a test may change."""
    shutil.copytree(models("llama", "causal_lm"), tmp_path / "base")
    set_template(tmp_path, TEMPLATE)
    write_jsonl(tmp_path / "held.jsonl", chat_rows(4))
    held = {"path": str(tmp_path / "held.jsonl")}
    return lambda **changes: recipe(model=str(tmp_path / "base"), data__validation=held, **changes)


def set_template(home: Path, text: str) -> None:
    (home / "base" / "chat_template.jinja").write_text(text)


def change_weights(home: Path) -> None:
    file = home / "base" / "model.safetensors"
    save_file({name: value * 1.1 for name, value in load_file(file).items()}, file, {"format": "pt"})


def change_tokenizer(home: Path) -> None:
    """Let the tokenizer decode in another way: every row has the tokens that it had."""
    file = home / "base" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["decoder"]["replacement"] = "_"
    file.write_text(json.dumps(data))


CHANGES: dict[str, Callable[[Path], object]] = {
    "the training rows (16 before, 15 now)": lambda home: write_jsonl(home / "run.jsonl", chat_rows(15)),
    "the validation rows": lambda home: write_jsonl(home / "held.jsonl", chat_rows(4)[::-1]),
    "the tokenizer": change_tokenizer,
    "the chat template": lambda home: set_template(home, TEMPLATE.replace("<s>", "")),
    "the weights or the config of the base model": change_weights,
}


@pytest.mark.parametrize("name", CHANGES)
def test_resume_names_what_changed(own_recipe, tmp_path, name: str) -> None:
    loaded = own_recipe(training__max_steps=3)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(2))
    CHANGES[name](tmp_path)
    with pytest.raises(UserError) as caught:
        train(loaded, resume=True)
    assert name in str(caught.value) and "changed since this run was stopped" in str(caught.value)


def test_what_changes_the_last_digits_is_a_note(own_recipe, monkeypatch) -> None:
    loaded = own_recipe(training__max_steps=3)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(2))
    monkeypatch.setattr(compare_inputs, "device_name", lambda _device: "another")
    told = Recorder()
    assert train(loaded, resume=True, reporter=told).status == "finished"
    (note,) = [note for note in told.notes if "changed since this run was stopped" in note]
    assert "the device (cpu before, another now)" in note


def test_a_checkpoint_without_a_record_goes_on(recipe) -> None:
    loaded = recipe(training__max_steps=3)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(2))
    (checkpoint,) = Path(loaded.recipe.output_dir).glob("checkpoints/step-*")
    tree = load_tree(checkpoint)
    del tree["progress"]["inputs"]
    tree["progress"]["of_a_later_version"] = 1
    save_tree(checkpoint, tree)
    files = {path.name: path for path in checkpoint.iterdir() if path.name != "manifest.json"}
    from peftcli.record import checkpoints

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for path in files.values():
        manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": checkpoints._sha256(path)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    told = Recorder()
    assert train(loaded, resume=True, reporter=told).steps == 3
    assert not [note for note in told.notes if "changed" in note]


def test_a_stream_is_compared_by_its_files(recipe, tmp_path) -> None:
    loaded = recipe(training__max_steps=3, data__streaming=True)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(2))
    data = tmp_path / "run.jsonl"
    text = data.read_text()
    data.write_text(text.replace("cat", "dog"))
    with pytest.raises(UserError, match=r"the data .*run\.jsonl changed since"):
        train(loaded, resume=True)
    data.write_text(text)
    told = Recorder()
    train(loaded, resume=True, reporter=told)
    assert any("rows of a stream are not compared" in note for note in told.notes)


@pytest.mark.parametrize("name", ["the tokenizer", "the chat template", "the validation rows"])
def test_who_uses_a_run_is_told_what_changed(own_recipe, tmp_path, name: str) -> None:
    loaded = own_recipe(training__max_steps=1)
    train(loaded)
    notes: list[str] = []
    evaluate_run(loaded.recipe.output_dir, note=notes.append)
    assert not [note for note in notes if "changed" in note]
    CHANGES[name](tmp_path)
    evaluate_run(loaded.recipe.output_dir, note=notes.append)
    assert [note for note in notes if note.startswith(f"{name} changed since training")]
    if name != "the validation rows":
        merging = open_run_to_merge(Path(loaded.recipe.output_dir), None).notes
        assert [note for note in merging if note.startswith(f"{name} changed since training")]


def test_who_uses_an_unfinished_run_is_told_too(own_recipe, tmp_path) -> None:
    loaded = own_recipe(training__max_steps=3)
    with pytest.raises(Stopped):
        train(loaded, reporter=CtrlC(2))
    change_tokenizer(tmp_path)
    notes: list[str] = []
    evaluate_run(loaded.recipe.output_dir, note=notes.append, opening=Opening(checkpoint="last"))
    assert [note for note in notes if note.startswith("the tokenizer changed since training")]


def test_an_adapter_of_other_weights_is_not_gone_on_with_in_silence(own_recipe, tmp_path) -> None:
    first = train(own_recipe(training__max_steps=1)).output_dir
    notes = []
    for name in ("same", "changed"):
        told = Recorder()
        train(own_recipe(name=name, training__max_steps=1, method__init_from=first), reporter=told)
        notes.append([note for note in told.notes if "trained on other weights" in note])
        change_weights(tmp_path)
    assert (len(notes[0]), len(notes[1])) == (0, 1)


THEN = RunInputs("a", 10, {"": "b"}, {"d.jsonl": "c"}, "t", "none", "w", 1, "cpu", {"tokenizers": "1"}, {"x": "on"})


def test_another_way_to_write_the_same_tokenizer_is_no_other_tokenizer() -> None:
    assert differences(THEN, THEN).decisive == differences(THEN, THEN).possible == []
    assert differences(THEN, replace(THEN, tokenizer="u")).decisive == ["the tokenizer"]
    upgraded = replace(THEN, tokenizer="u", versions={"tokenizers": "2"})
    assert differences(THEN, upgraded).decisive == []
    assert "the tokenizer" in differences(THEN, upgraded).possible
    assert differences(replace(THEN, train_rows=None), replace(upgraded, train_rows=None)).decisive == ["the tokenizer"]


def test_other_bytes_count_where_not_every_row_is_compared() -> None:
    other = replace(THEN, contents={"d.jsonl": "z"})
    assert differences(THEN, other).possible == ["the data d.jsonl (the rows are the same)"]
    many = replace(other, train_count=run_inputs.SAMPLE + 1)
    assert differences(replace(THEN, train_count=run_inputs.SAMPLE + 1), many).decisive == ["the data d.jsonl"]
