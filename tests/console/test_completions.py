"""What the shell completes, as its function asks for it."""

from __future__ import annotations

import pytest

from peftcli.console.completions import complete_override
from tests.command_line import Cli

ASKED = [
    ("predi", ["predict"]),
    ("methods lo", ["lora", "lokr", "loreft"]),
    ("train recipe.yaml method.name = lok", ["lokr"]),  # bash parts words at "="
    ("train recipe.yaml data.form", ["data.format=auto", "data.format=messages"]),
    ("train recipe.yaml data.s", ["data.split=", "data.streaming="]),
    ("export runs/x --to hf", ["hf-peft"]),
    ("count-params --task seq", ["seq2seq_lm", "sequence_classification"]),
    ("eval runs/x --checkpoint la", ["last"]),
    ("recipes copy lora-sm", ["lora-smollm2-chat"]),
    ("init --task pref", ["preference"]),
    ("init --method lor", ["lora", "loreft"]),
    ("compare recipe.yaml --methods lora,ia", ["lora,ia3"]),
    ("merge runs/x --dtype bf", ["bfloat16"]),
    ("merge runs/x --majority-sign-method fr", ["frequency"]),
    ("sweep recipe.yaml --pruner hy", ["hyperband"]),
]


@pytest.mark.parametrize(("typed", "expected"), ASKED, ids=[typed for typed, _ in ASKED])
def test_bash(cli: Cli, monkeypatch: pytest.MonkeyPatch, typed: str, expected: list[str]) -> None:
    words = f"peft {typed}"
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_PEFT_COMPLETE", "complete_bash")
    done = cli()
    assert done.code == 0 and set(expected) <= set(done.out.split()) and done.err == ""
    assert all(word.startswith(typed.split()[-1]) for word in done.out.split())


def test_a_whole_word_of_zsh_and_fish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert complete_override("method.name=lok") == ["method.name=lokr"]
    assert "data.format=messages" in complete_override("data.format=")
    assert complete_override("training.bf16=t") == ["training.bf16=true"]
    assert complete_override("no.such=") == [] and complete_override("no.such.key") == []


def test_the_steps_of_the_run_that_was_typed(cli: Cli, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/checkpoints/step-000020").mkdir(parents=True)
    monkeypatch.setenv("COMP_WORDS", f"peft predict {tmp_path / 'run'} --checkpoint step")
    monkeypatch.setenv("COMP_CWORD", "4")
    monkeypatch.setenv("_PEFT_COMPLETE", "complete_bash")
    assert cli().out.split() == ["step-20"]
