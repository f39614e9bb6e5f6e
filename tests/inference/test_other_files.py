"""Other files than the training's: what predict and eval take from the recipe, the lines they give, what they say."""

from __future__ import annotations

import io
import json
import socket
import sys
from pathlib import Path

import pytest

from peftcli.data.other_file import CHOICE_OF_ROWS, reading_spec
from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening
from peftcli.inference.predict_run import predict_run, predict_runs
from peftcli.inference.row_scores import score_rows
from peftcli.recipe.schema import DataSpec
from peftcli.training.run import train
from tests.recipes import chat_rows, class_rows, write_jsonl

HOW_TO_READ = {
    "format",
    "columns",
    "template",
    "max_length",
    "overflow",
    "train_on",
    "chat_template",
    "on_error",
    "num_proc",
    "cache_dir",
}


def test_each_key_of_data_chooses_rows_or_says_how_to_read_them() -> None:
    """A key that comes later is put on one of the lists, or another file is read with it unasked."""
    later = {name for name in DataSpec.model_fields if name.startswith(("chat_", "role"))}
    assert set(DataSpec.model_fields) - later == (set(CHOICE_OF_ROWS) | HOW_TO_READ) - later


def test_labels_may_be_absent_and_what_was_cut_is_said(recipe, tmp_path: Path) -> None:
    rows = [{"body": row["text"], "stars": row["label"], "writer": str(i)} for i, row in enumerate(class_rows(24))]
    columns = {"text": "body", "label": "stars"}
    loaded = recipe("bert", "sequence_classification", rows, training__max_steps=1, data__columns=columns,
                    data__group_by="writer", data__val_set_size=4, data__max_rows=5, data__overflow="drop",
                    data__on_error="skip", data__max_length=16)  # fmt: skip
    out = train(loaded).output_dir
    texts = [{"body": "the cat"}, {"body": "the cat was " * 30}, {"body": "a dog"}]
    notes: list[str] = []
    lines = list(predict_run(out, str(write_jsonl(tmp_path / "in.jsonl", texts)), note=notes.append))
    assert [line.get("truncated", False) for line in lines] == [False, True, False]
    assert notes == ["1 of 3 rows are longer than max_length 16 and were cut (truncated: true)"]

    labelled = [{**text, "stars": "class0"} for text in texts] * 4
    notes.clear()
    assert evaluate_run(out, str(write_jsonl(tmp_path / "eval.jsonl", labelled)), note=notes.append)["eval_rows"] == 8
    assert notes == ["4 of 12 rows are longer than max_length 16 and left out"]

    broken = write_jsonl(tmp_path / "broken.jsonl", [{"body": "the cat"}, {"body": None}])
    with pytest.raises(UserError) as error:
        list(predict_run(out, str(broken)))
    assert "broken.jsonl:2" in str(error.value) and "each row gets a prediction" in str(error.value)
    assert "on_error" not in str(error.value)
    with pytest.raises(UserError, match="max-new-tokens is for generated text"):
        predict_run(out, str(broken), opening=Opening(max_new_tokens=4))


def test_several_labels_in_a_cell_are_read_as_in_training_however_few_rows_there_are(recipe, tmp_path: Path) -> None:
    cells = ["red|round", "red", "round", "red|flat", "flat", "flat|round", "round"] * 3
    rows = [{"text": f"the {cell}", "label": cell} for cell in cells]
    loaded = recipe("bert", "sequence_classification", rows, training__max_steps=1, data__val_set_size=0,
                    model__problem_type="multi_label")  # fmt: skip
    out = train(loaded).output_dir
    for cell in ("red|round", "flat"):
        file = write_jsonl(tmp_path / "one.jsonl", [{"text": "the", "label": cell}])
        assert evaluate_run(out, str(file))["eval_rows"] == 1


def test_answers_may_be_absent_and_their_length_is_chosen(recipe, tmp_path: Path) -> None:
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in chat_rows(8)]
    loaded = recipe("gpt2", "causal_lm", rows, training__max_steps=1, training__max_new_tokens=5,
                    data__columns={"prompt": "q", "completion": "a"}, data__template="Q: {q} A:",
                    data__max_length=20)  # fmt: skip
    out = train(loaded).output_dir
    file = str(write_jsonl(tmp_path / "in.jsonl", [{"q": "the cat"}, {"q": "the cat " * 30}]))
    notes: list[str] = []
    lines = list(predict_run(out, file, note=notes.append, opening=Opening(max_new_tokens=2)))
    assert all(line["scores"]["tokens"] <= 2 for line in lines)
    assert [line.get("truncated", False) for line in lines] == [False, True]
    reasons = ["length" if line["scores"]["tokens"] == 2 else "stop" for line in lines]
    assert [line["finish_reason"] for line in lines] == reasons
    assert any("1 of 2 rows" in note for note in notes) and any("--max-new-tokens" in note for note in notes)

    given: list[dict] = []
    with pytest.raises(UserError, match="no run directory"):  # before the first prediction of the first run
        given += predict_runs([out, tmp_path / "nowhere"], file)
    assert not given


def test_each_word_has_an_entry(recipe, tmp_path: Path) -> None:
    rows = [{"w": ["cat", "dog", "mat"], "t": ["B-PET", "O", "O"]} for _ in range(8)]
    loaded = recipe("bert", "token_classification", rows, training__max_steps=1, data__max_length=8,
                    data__columns={"tokens": "w", "tags": "t"})  # fmt: skip
    out = train(loaded).output_dir
    words = [["cat", "\u200b", "dog"], ["cat", "", "dog"], ["cat"] * 12, ["", ""], ["cat", "dog"]]
    file = write_jsonl(tmp_path / "in.jsonl", [{"w": row} for row in words])
    lines = list(predict_run(out, str(file)))
    assert [len(line["prediction"]) for line in lines] == [len(line["scores"]) for line in lines] == [3, 3, 12, 2, 2]
    assert lines[2]["prediction"][-1] is None and lines[2]["truncated"] is True
    assert lines[3]["prediction"][0] is None and lines[3]["scores"][0] is None  # no token, and no space before it
    assert lines[3]["prediction"][1] is not None and None not in lines[4]["prediction"]


def test_a_file_is_read_as_the_source_that_it_resembles(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"body": "the cat"}])
    sources = [{"path": "a", "columns": {"text": "content"}}, {"path": "b", "columns": {"text": "body", "label": "l"}}]
    spec = DataSpec.model_validate({"datasets": sources, "max_rows": 3})
    assert reading_spec(spec, str(file)).columns == {"text": "body", "label": "l"}
    assert reading_spec(spec, str(file)).max_rows is None


@pytest.mark.parametrize(
    ("content", "suffix"),
    [('{"text": "a"}\n{"text": "b"}\n', ".jsonl"), ('\n[{"text": "a"}]', ".json"), ('{\n "x": [1]\n}', ".json"),
     ("text,label\na,b\n", ".csv"), ("text\tlabel\na\tb\n", ".tsv"), ("a line\n", ".txt")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_rows(monkeypatch, content: str, suffix: str, name: str) -> None:
    from peftcli.console.standard_input import rows_file

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    with rows_file(name, "--input") as file:
        assert Path(file).suffix == suffix and Path(file).read_text() == content
    assert not Path(file).exists()


def test_errors_of_standard_input_name_it(monkeypatch) -> None:
    from peftcli.console.standard_input import rows_file
    from peftcli.data.prepare import prepare_for_prediction

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": null}\n')))
    with pytest.raises(UserError) as error, rows_file("-", "--input") as file:
        from tests.tiny import tiny_tokenizer

        prepare_for_prediction(file, DataSpec(), "causal_lm", tiny_tokenizer())
    assert "standard input:1" in str(error.value) and "/tmp" not in str(error.value)
    for packed in (b"\x1f\x8b...", b"  \n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
        with pytest.raises(UserError, match=r"compressed|empty"), rows_file("-", "--input"):
            pass


def test_bytes_that_are_no_rows_are_refused_before_all_of_them_are_read(monkeypatch, tmp_path: Path) -> None:
    from peftcli.console.standard_input import rows_file

    for content, said in ((bytes(10_000), "binary"), (("a,b\n" * 2000).encode("utf-16"), "UTF-16")):
        stream = io.BytesIO(content)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        with pytest.raises(UserError, match=f"standard input: the file is {said}"), rows_file("-", "--input"):
            pass
        assert stream.tell() < len(content)  # of /dev/zero there is no end
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with (
            pytest.raises(UserError, match="cannot be read: No such device"),
            rows_file(str(tmp_path / "s"), "--input"),
        ):
            pass


def test_texts_that_end_before_their_references_are_said(recipe, tmp_path: Path) -> None:
    metrics = {"training__metrics": ["exact_match"], "training__max_steps": 1}
    out = train(recipe("llama", **metrics, training__max_new_tokens=12)).output_dir
    rows = [{"prompt": "the cat", "completion": " sat"}, {"prompt": "the cat", "completion": " cat" * 40}]
    file = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    notes: list[str] = []
    evaluate_run(out, file, notes.append)
    assert any(note.startswith("1 of 2 references have more than 12 tokens") for note in notes)
    notes.clear()
    evaluate_run(out, file, notes.append, Opening(max_new_tokens=500))
    assert not any("references" in note for note in notes)


def test_texts_are_evaluated_up_to_the_end_of_a_turn(recipe, tmp_path: Path, recorder) -> None:
    """The token ends no text of the base: training stopped there, and `peft eval` of the same rows went on."""
    template = tmp_path / "short.jinja"
    template.write_text("{% for turn in messages %}{{ turn.role[0] }}:{{ turn.content }}<mask>\n{% endfor %}"
                        "{% if add_generation_prompt %}a:{% endif %}")  # fmt: skip
    rows = [{"messages": [{"role": "user", "content": row["prompt"]},
                          {"role": "assistant", "content": row["completion"]}]} for row in chat_rows(2)]  # fmt: skip
    held_out = str(write_jsonl(tmp_path / "held_out.jsonl", rows))
    loaded = recipe(
        "llama", "causal_lm", rows, data__chat_template=str(template), data__validation={"path": held_out},
        data__val_set_size=0, method={"name": "lora", "r": 16, "target_modules": "all-linear"},
        training__learning_rate=0.02, training__max_steps=120, training__max_new_tokens=16,
        training__metrics=["exact_match"], training__eval_strategy="steps", training__eval_steps=120,
    )  # fmt: skip
    out = train(loaded, reporter=recorder).output_dir
    assert recorder.evaluations[-1]["eval_exact_match"] == 1.0  # it learnt them
    assert evaluate_run(out)["eval_exact_match"] == evaluate_run(out, held_out)["eval_exact_match"] == 1.0
    assert score_rows(out).predictions == [row["completion"] for row in chat_rows(2)]


def test_lines_are_strict_json(recipe, tmp_path: Path) -> None:
    out = train(recipe("llama", training__max_steps=1, training__max_new_tokens=2)).output_dir
    (line,) = predict_run(out, str(write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the cat"}])))
    assert set(json.loads(json.dumps(line))) == {"prediction", "scores", "finish_reason"}


@pytest.mark.parametrize("output", ["runs/one", "absolute"])
def test_a_run_with_relative_paths_works_from_another_directory(recipe, tmp_path: Path, monkeypatch, output) -> None:
    from tests.tiny import save_tiny

    project, other = tmp_path / "project", tmp_path / "other"
    project.mkdir(), other.mkdir()
    save_tiny(project / "base", "llama", "causal_lm")
    write_jsonl(project / "rows.jsonl", chat_rows(8))
    monkeypatch.chdir(project)
    out = str(tmp_path / "elsewhere") if output == "absolute" else output
    loaded = recipe("llama", model="base", training__max_steps=1, training__max_new_tokens=2, data__path="rows.jsonl",
                    data__val_set_size=2, output_dir=out)  # fmt: skip
    train(loaded)
    run = (project / out).absolute()
    monkeypatch.chdir(other)
    assert len(list(predict_run(run, str(project / "rows.jsonl")))) == 8
    assert evaluate_run(run)["eval_rows"] == 2  # the data's path is relative, too
    (project / "base").rename(project / "gone")
    with pytest.raises(UserError) as error:
        predict_run(run, str(project / "rows.jsonl"))
    assert f"relative to {project}" in str(error.value)
