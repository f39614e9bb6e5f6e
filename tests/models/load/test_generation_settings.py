"""A generation_config.json that transformers cannot read or use is named, not met as a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.models.load.generation_settings import GENERATION_CONFIG, check_generation_config
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.recipe.schema import ModelSpec
from peftcli.tasks.generation import generate
from tests.damage import changed
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "llama", "llama", "causal_lm")


def test_every_key(tmp_path: Path) -> None:
    settings = {"max_new_tokens": 3, "eos_token_id": [2], "pad_token_id": 0, "suppress_tokens": [1], "do_sample": True}
    file = tmp_path / GENERATION_CONFIG
    refused = set()
    for key, text in [*changed(settings), ("", "["), ("", "5"), ("", "[" * 5_000)]:
        file.write_text(text)
        try:
            check_generation_config(tmp_path)
        except UserError as error:
            assert GENERATION_CONFIG in str(error)
            assert key in str(error) or "nested too deeply" in str(error)
            refused.add(key)
    assert refused >= {"max_new_tokens", "eos_token_id", "suppress_tokens", ""}


@pytest.mark.parametrize("change", [{"max_new_tokens": -1}, {"repetition_penalty": "x"}, {"min_length": [1]}, "{"])
def test_it_is_named_when_the_model_loads_or_generates(change: Any, base: Path) -> None:
    file = base / GENERATION_CONFIG
    whole = file.read_text()
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(whole) | change))
    try:
        with pytest.raises(UserError, match=GENERATION_CONFIG):
            spec = ModelSpec(name_or_path=str(base))
            model = load_model(spec, "causal_lm").model
            row = {"input_ids": torch.tensor([[1, 5]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
            generate(model, row, load_tokenizer(spec), max_new_tokens=2)
    finally:
        file.write_text(whole)
