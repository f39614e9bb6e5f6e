"""Modelfiles as Ollama's parser reads them: nothing of a template or of a stop text is lost, or a note says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.recipe.schema import ModelSpec
from peftcli.serving.modelfile import modelfile
from tests.serving.modelfile_grammar import read_modelfile
from tests.serving.served_models import TEMPLATE, byte_tokenizer

START = "<|im_start|>"


def described(
    template: str, stops: tuple[int, ...] = (), base: Path | None = None
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the commands of the Modelfile of a model with a chat template, and the notes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    leaving = LeavingModel(ModelSpec(name_or_path="m"), "causal_lm", tokenizer, base, LearntTexts(None, stops))
    text, notes = modelfile("m.gguf", leaving, None)
    return read_modelfile(text), notes


@pytest.mark.parametrize("around", ['"', '""', "\t'", '"say\n"', "\n# ", "PARAMETER "])
def test_what_stands_around_turns_is_read_as_it_was_written(around: str) -> None:
    commands, notes = described(TEMPLATE.replace(START, START + around))
    assert notes == []
    assert commands[0] == ("FROM", "./m.gguf") and commands[2:] == [("stop", "<|end|>")]
    name, template = commands[1]
    assert name == "TEMPLATE" and template.count(START + around) == 4  # three roles, and the answer
    assert template.endswith(f"{START}{around}assistant\n")


@pytest.mark.parametrize("sign", ['"""', "\u00a0", "\u200b"])
def test_what_a_modelfile_cannot_hold_is_left_out_with_a_note(sign: str) -> None:
    commands, notes = described(TEMPLATE.replace(START, START + sign))
    assert [name for name, _ in commands] == ["FROM", "stop"]
    assert len(notes) == 1 and "cannot hold the characters of the chat template" in notes[0]


def test_a_stop_text_is_the_text_and_not_the_tokenizers_name_for_it() -> None:
    """In a byte-level vocabulary a line feed is called by another letter."""
    newline = byte_tokenizer()("\n")["input_ids"][0]
    assert described(TEMPLATE, (newline,))[0][2:] == [("stop", "\n"), ("stop", "<|end|>")]


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_the_bases_own_ends_are_stop_texts_too(name: str, tmp_path: Path) -> None:
    """A model that goes on after the end of its turn, or learnt none, ends as the base does."""
    ends = [byte_tokenizer()(text)["input_ids"][0] for text in ("~", "|")]
    (tmp_path / name).write_text(json.dumps({"eos_token_id": [*ends, 10**6, None]}), encoding="utf-8")
    assert described(TEMPLATE, base=tmp_path)[0][2:] == [("stop", "<|end|>"), ("stop", "~"), ("stop", "|")]


def test_a_stop_text_that_a_modelfile_cannot_hold_is_named() -> None:
    bell = byte_tokenizer()("\a")["input_ids"][0]
    commands, notes = described(TEMPLATE, (bell,))
    assert commands[2:] == [("stop", "<|end|>")] and notes == ["a Modelfile cannot hold the stop text '\\x07'"]
