"""`peft inspect` from the front door: the screen, JSON, the page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.app import main
from tests.tiny import save_tiny

ROWS = [{"question": f"What is {n} plus two?", "answer": f"It is {n + 2}."} for n in range(20)]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model", "llama")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name_or_path: {tmp_path / 'model'}}}\n"
        "task: causal_lm\n"
        f"data: {{path: {data}, val_set_size: 5}}\n"
        "method: {name: lora}\n",
        encoding="utf-8",
    )
    return path


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *map(str, arguments)])
    return int(caught.value.code or 0)


def test_json_holds_counts_and_examples(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--json", "-n", 2) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {
        "rows": 20, "kept": 20, "truncated": 0, "dropped": 0, "fully_masked": 0, "skipped": 0,
    }  # fmt: skip
    assert len(document["examples"]) == 2
    for example in document["examples"]:
        answer = ROWS[example["row"] - 1]["answer"]
        assert "".join(token["text"] for token in example["tokens"] if token["supervised"]) == f"{answer}</s>"
        assert example["source"].endswith("rows.jsonl")


def test_the_screen_shows_rows_lengths_and_counts(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "-n", 1, "--width", 80) == 0
    text = capsys.readouterr().out
    assert "⟦It is" in text and "</s>⟧" in text
    assert "question, answer -> question_answer" in text
    assert "lengths in tokens:" in text and "█" in text
    assert "training rows" in text and "duplicates in training: 0" in text
    assert max(map(len, text.splitlines())) < 200


def test_the_page_is_written(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out" / "page.html"
    assert run(recipe, "--html", page) == 0
    assert capsys.readouterr().out == ""
    assert "<span class='learnt'>" in page.read_text(encoding="utf-8")


def test_training_finds_the_same_rows_in_the_cache(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--json") == 0
    assert json.loads(capsys.readouterr().out)["report"]["cache"] == "miss"
    assert run(recipe, "--json", "seed=3", "output_dir=elsewhere") == 0
    assert json.loads(capsys.readouterr().out)["report"]["cache"] == "hit"


def test_what_is_wrong_with_the_data_exits_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "data.columns={prompt: nope}") == 2
    error = capsys.readouterr().err
    assert "no column 'nope'" in error and "Traceback" not in error


def test_a_recipe_without_data_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name_or_path: x/y}\ntask: causal_lm\nmethod: {name: lora}\n", encoding="utf-8")
    assert run(path) == 2
    assert "data" in capsys.readouterr().err
