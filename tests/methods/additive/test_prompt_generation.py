"""Prompts in generation: families that take no embeddings there, what processors of logits see, beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FSMTConfig, FSMTForConditionalGeneration

from peftcli.analysis.support.trials import try_type
from peftcli.analysis.support.tried_types import TRIED
from peftcli.attachments.prompt_tuning import PromptAttachment
from peftcli.models.read_anatomy import read_anatomy
from peftcli.process_state import quiet_transformers
from tests.methods import harness
from tests.methods.additive.test_prompt_tuning import prompted

NEW = 8


@pytest.mark.parametrize(
    "name",
    [
        "gemma3",  # refuses embeddings in generate
        "gemma4_text",  # looks each embedding up in its table again
        "openai-gpt",  # has no cache
    ],
)
def test_families_that_take_no_embeddings_generate(name: str) -> None:
    with quiet_transformers():
        cells = try_type(name, "causal_lm", ["prompt_tuning"])["methods"]["prompt_tuning"]
    assert set(cells.values()) == {TRIED}, cells


def _inputs(attachment: PromptAttachment) -> dict[str, Tensor]:
    batch = harness.batch_for(attachment.model, padding="left")
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def _generated(attachment: PromptAttachment, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """Return the new tokens only."""
    prepared = attachment.prepare_inputs(inputs, generate=True)
    model: Any = attachment.model
    assert int(prepared["input_ids"].max()) < model.config.vocab_size  # processors look ids up
    out: Tensor = model.generate(**prepared, max_new_tokens=NEW, do_sample=False, eos_token_id=None, **options)
    return out[:, prepared["input_ids"].shape[1] :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_text_is_that_of_embeddings(family: str, beams: int) -> None:
    attachment = prompted(family)
    inputs = _inputs(attachment)
    longer = attachment.prepare_inputs(inputs)
    model: Any = attachment.model
    with torch.no_grad():
        embedded = model.get_submodule(attachment.embedding)(longer["input_ids"])
    mask = longer["attention_mask"]
    options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    expected = model.generate(inputs_embeds=embedded, attention_mask=mask, **options)
    for cached in (True, False):
        assert torch.equal(_generated(attachment, inputs, num_beams=beams, use_cache=cached), expected)


def test_a_repetition_penalty_is_that_of_the_text_alone() -> None:
    attachment = prompted("llama")
    ids = harness.batch_for(attachment.model, padding="none")["input_ids"][:1]
    new = _generated(attachment, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, repetition_penalty=1.7)
    for token in new[0]:
        scores = harness.logits_of(attachment, {"input_ids": ids})[0, -1]
        seen = ids[0].unique()
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 1.7, scores[seen] / 1.7)
        assert int(scores.argmax()) == int(token)
        ids = torch.cat([ids, token[None, None]], dim=1)


@pytest.mark.parametrize("option", [{"no_repeat_ngram_size": 2}, {"bad_words_ids": [[7], [8, 9]]}, {"num_beams": 2}])
def test_what_reads_ids_finds_them_in_the_vocabulary(option: dict[str, Any]) -> None:
    attachment = prompted("llama")
    assert _generated(attachment, _inputs(attachment), **option, repetition_penalty=1.2).shape == (3, NEW)


def test_ids_of_another_pass_stay_as_they_are() -> None:
    attachment = prompted("llama")
    inputs = _inputs(attachment)
    prepared = attachment.prepare_inputs(inputs, generate=True)
    model: Any = attachment.model
    shown = {"input_ids": prepared["input_ids"], "attention_mask": prepared["attention_mask"]}
    with torch.no_grad():
        known = model(**shown).logits
        attachment.prepare_inputs(inputs)
        unknown = model(**shown).logits
    assert not torch.allclose(known, unknown)  # the second pass has no prompt: its ids are what they say
    attachment.prepare_inputs(inputs, generate=True)
    attachment.detach()
    assert not any(hook is attachment.stand_ins for hook in model._forward_pre_hooks.values())


def test_an_encoder_that_takes_no_embeddings() -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    torch.manual_seed(0)
    config = FSMTConfig(langs=["en", "de"], src_vocab_size=99, tgt_vocab_size=99, **sizes, **heads)
    model: Any = FSMTForConditionalGeneration(config).eval()
    attachment = harness.attach("prompt_tuning", model, read_anatomy(model), num_virtual_tokens=4)
    assert isinstance(attachment, PromptAttachment)
    inputs = {"input_ids": torch.randint(5, 90, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    texts = []
    for cached in (True, False):
        prepared = attachment.prepare_inputs(inputs, generate=True)
        texts.append(model.generate(**prepared, max_new_tokens=NEW, do_sample=False, num_beams=2, use_cache=cached))
    assert torch.equal(*texts)
