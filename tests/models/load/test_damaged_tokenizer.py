"""The files of a tokenizer, damaged or odd: it works, or the file is named, and the key where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.data.chat.named_templates import choose_template
from peftcli.errors import UserError
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.recipe.schema import ModelSpec
from tests.damage import changed
from tests.tiny import save_tiny

FILES = {
    "tokenizer_config.json": {"model_max_length": 9, "chat_template": "{{ messages }}", "auto_map": {"a": "b"}},
    "special_tokens_map.json": {"eos_token": "</s>", "pad_token": {"content": "<pad>", "lstrip": False}},
    "added_tokens.json": {"<new>": 5},
}
OTHERS = ("null", "[]", '{"a": 1}', '"x"', "-1", "1.5", "[" * 2_000 + "]" * 2_000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "llama", "llama", "causal_lm")


def use(base: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(name_or_path=str(base)))
    rows = tokenizer(["the cat", "a dog on the mat " * 9])["input_ids"]
    tokenizer.decode(rows[0])
    tokenizer.pad([{"input_ids": row} for row in rows])
    choose_template(None, tokenizer)


def unnamed(base: Path, name: str, texts: list[tuple[str, str]]) -> list[str]:
    """Return the refusals of each text of a file that do not name the file."""
    file = base / name
    whole = file.read_bytes() if file.is_file() else None
    found = []
    try:
        for key, text in texts:
            file.write_text(text)
            try:
                use(base)
            except UserError as error:  # any other exception fails the test
                if name not in str(error) and "the tokenizer has a chat template" not in str(error):
                    found.append(f"{key}: {error}")
    finally:
        file.unlink() if whole is None else file.write_bytes(whole)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_a_tokenizers_settings(name: str, base: Path) -> None:
    there = json.loads((base / name).read_text()) if (base / name).is_file() else {}
    assert unnamed(base, name, list(changed(there | FILES[name], OTHERS))) == []


@pytest.mark.parametrize("name", ["tokenizer.json", *FILES])
def test_a_file_that_is_no_record(name: str, base: Path) -> None:
    texts = ["{", "[]", '"x"', "[" * 5_000, "\x00", ""]
    assert unnamed(base, name, [(text[:9], text) for text in texts]) == []


def test_a_tokenizer_json_with_other_values(base: Path) -> None:
    whole = json.loads((base / "tokenizer.json").read_text())
    top = [(key, json.dumps({**whole, key: other})) for key in whole for other in (5, "x", [1], {"a": 1}, None)]
    assert unnamed(base, "tokenizer.json", top) == []
