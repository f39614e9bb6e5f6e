"""`peft chat` in a pipe: a line for each turn and nothing else on standard output."""

from __future__ import annotations

import io
import json

import pytest

from peftcli.training.run import train


@pytest.fixture
def run(recipe):
    loaded = recipe("gpt2", "causal_lm", training__learning_rate=1e-5, training__max_steps=1)
    train(loaded)
    return loaded.recipe.output_dir


def test_each_line_is_answered_by_one(run, cli, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n\nthe dog\n"))
    plain = cli("chat", run, "--max-new-tokens", 5)
    assert plain.code == 0
    assert len(plain.out.splitlines()) == 2
    assert "line 2 of standard input is empty" in plain.err
    assert "each turn is answered on its own" in plain.err  # prompt_completion rows, no chat template
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe dog\n"))
    quoted = cli("chat", run, "--max-new-tokens", 5, "--json")
    assert [" ".join(json.loads(line).split("\n")) for line in quoted.out.splitlines()] == plain.out.splitlines()


def test_bad_input_is_refused_before_anything_is_loaded(run, cli) -> None:
    for arguments, said in (
        ((run, "--top-p", "0.5"), "--temperature"),
        ((run, "--checkpoint", "step-7"), "step-7"),
        (("nowhere",), "no run, model directory or recipe"),
        ((run, run), "two of these are called run"),
    ):
        result = cli("chat", *arguments)
        assert result.code == 2, arguments
        assert said in result.err
        assert result.out == ""
