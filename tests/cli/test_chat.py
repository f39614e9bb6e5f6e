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


def given(content: bytes) -> io.TextIOWrapper:
    """Return standard input with these bytes."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def test_what_is_no_text_is_said_after_the_answers_before_it(run, cli, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", given(b"the cat\nthe \xff dog\n"))
    result = cli("chat", run, "--max-new-tokens", 5)
    assert (result.code, len(result.out.splitlines())) == (2, 1)
    assert "line 2 of standard input is not utf-8: byte 5" in result.err and "iconv" in result.err
    monkeypatch.setattr("sys.stdin", given(b"the cat\n"))
    result = cli("chat", run, "--max-new-tokens", 5, "--system", "be \udcff")
    assert (result.code, result.out) == (2, "") and "half a character" in result.err


def test_each_line_is_answered_by_one(run, cli, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", given(b"\xef\xbb\xbfthe cat\n\nthe dog\r\n"))  # with a byte order mark
    plain = cli("chat", run, "--max-new-tokens", 5)
    assert plain.code == 0
    assert len(plain.out.splitlines()) == 2
    assert "line 2 of standard input is empty" in plain.err
    assert "each turn is answered on its own" in plain.err  # prompt_completion rows, no chat template
    monkeypatch.setattr("sys.stdin", given(b"the cat\nthe dog\n"))
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
