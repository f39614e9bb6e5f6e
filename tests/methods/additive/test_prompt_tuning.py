"""Prompt tuning: the same as embedded inputs, parity with HF peft, the right positions read, generation, packing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.attachments.prompt_tuning import PromptAttachment
from peftcli.errors import UserError
from peftcli.methods.prompt_tuning import METHOD, PromptTuningParams
from peftcli.tasks.training_rows import TrainingRows
from tests.methods import harness
from tests.methods.additive.test_prefix_tuning import loud
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ, tiny_model, tiny_tokenizer

P = 4
TEXT = [*ENCODERS, *DECODERS, *SEQ2SEQ]


def prompted(
    family: str, task: str | None = None, *, changes: dict[str, Any] | None = None, **params: Any
) -> PromptAttachment:
    model, anatomy = harness.frozen(family, task, **(changes or {}))
    loud(model)
    attachment = harness.attach("prompt_tuning", model, anatomy, num_virtual_tokens=P, **params)
    assert isinstance(attachment, PromptAttachment)
    return attachment


@pytest.mark.parametrize("family", TEXT)
def test_the_prompt_trains_and_nothing_else(family: str) -> None:
    attachment = harness.attached("prompt_tuning", family, num_virtual_tokens=P)
    attachment.initialise(attachment.model)
    batch = harness.batch_for(attachment.model)
    if family != "albert":  # the library refuses checkpointing for albert
        harness.checkpointing(attachment.model)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert harness.frozen_without_gradient(attachment)


def _embedded(attachment: PromptAttachment, plain: nn.Module, ids: Tensor) -> Tensor:
    """Return [prompt; embedded ids] from a model without any hook."""
    embed: nn.Module = plain.get_submodule(attachment.embedding)
    rows = embed(ids)
    return torch.cat([attachment.prompt.embeddings.detach().expand(ids.shape[0], -1, -1), rows], dim=1)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_sees_prompt_then_embedded_tokens(family: str) -> None:
    attachment = prompted(family)
    plain = tiny_model(family)
    loud(plain)
    ids = harness.batch_for(plain, padding="none")["input_ids"]
    with torch.no_grad():
        expected = plain(inputs_embeds=_embedded(attachment, plain, ids)).logits
    torch.testing.assert_close(harness.logits_of(attachment, {"input_ids": ids}), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_encoder_decoder_is_prompted_at_its_encoder(family: str) -> None:
    attachment = prompted(family)
    plain = tiny_model(family, "seq2seq_lm")
    loud(plain)
    batch = harness.batch_for(plain, padding="none")
    with torch.no_grad():
        embedded = _embedded(attachment, plain, batch["input_ids"])
        expected = plain(inputs_embeds=embedded, labels=batch["labels"]).logits
    torch.testing.assert_close(harness.logits_of(attachment, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "opt", "t5", "bert"])
def test_equal_to_hf_peft(family: str) -> None:
    from peft import PromptTuningConfig, get_peft_model

    task, kind = {"t5": ("seq2seq_lm", "SEQ_2_SEQ_LM"), "bert": ("sequence_classification", "SEQ_CLS")}.get(
        family, ("causal_lm", "CAUSAL_LM")
    )
    attachment = prompted(family, prompt_position="front" if family == "bert" else "auto")
    base = tiny_model(family, task)
    loud(base)
    theirs = get_peft_model(base, PromptTuningConfig(task_type=kind, num_virtual_tokens=P))
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight[:P].copy_(attachment.prompt.embeddings)
    batch = harness.batch_for(base)
    if family not in SEQ2SEQ:
        batch.pop("labels")
    with torch.no_grad():
        expected = theirs.eval()(**batch).logits
    ours = harness.logits_of(attachment, batch)
    if ours.dim() == 3 and family not in SEQ2SEQ:
        seen = attachment.prepare_inputs(batch)["attention_mask"].bool()
        ours, expected = ours[seen], expected[seen]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_s_head_still_reads_its_first_token(family: str) -> None:
    """[first; prompt; rest], so the pooled state is the first token's."""
    attachment = prompted(family)
    plain = tiny_model(family, "sequence_classification")
    loud(plain)
    ids = harness.batch_for(plain, padding="none")["input_ids"]
    with torch.no_grad():
        rows = plain.get_submodule(attachment.embedding)(ids)
        prompt = attachment.prompt.embeddings.expand(ids.shape[0], -1, -1)
        expected = plain(inputs_embeds=torch.cat([rows[:, :1], prompt, rows[:, 1:]], dim=1)).logits
    torch.testing.assert_close(harness.logits_of(attachment, {"input_ids": ids}), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "gpt2", "llama", "mistral", "bloom", "opt", "gemma2"])
def test_a_classifier_reads_the_same_with_padding(family: str, side: str) -> None:
    """Encoders' heads read position 0, so theirs is tried on the right only."""
    if side == "left" and family in ENCODERS:
        side = "right"
    attachment = prompted(family, "sequence_classification")
    batch = harness.batch_for(attachment.model, padding=side)
    batch.pop("labels")
    if side == "left" and family in DECODERS and family != "bloom":
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    columns = slice(2, None) if side == "left" else slice(0, 7)
    alone = {key: value[2:3, columns] for key, value in batch.items()}
    together = harness.logits_of(attachment, batch)[2:3]
    torch.testing.assert_close(together, harness.logits_of(attachment, alone), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_seq2seq_classifier_finds_its_eos(family: str) -> None:
    attachment = prompted(family, "sequence_classification")
    ids = harness.batch_for(attachment.model, padding="none")["input_ids"]
    ids[:, -1] = attachment.model.config.eos_token_id
    first = harness.logits_of(attachment, {"input_ids": ids})
    with torch.no_grad():
        attachment.prompt.embeddings.normal_()
    assert first.shape == (3, 3)
    assert not torch.allclose(first, harness.logits_of(attachment, {"input_ids": ids}))


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_token_logits_line_up_once_the_prompt_is_cut(family: str, side: str) -> None:
    attachment = prompted(family, "token_classification")
    batch = harness.batch_for(attachment.model, padding=side)
    prepared = attachment.prepare_inputs(batch)
    assert int((prepared["labels"] != -100).sum()) == int((batch["labels"] != -100).sum())
    cut_labels = prepared["labels"][:, P:]
    start = batch["attention_mask"].argmax(1)
    for row in range(3):
        begin = int(start[row]) + (1 if family != "llama" else 0)
        assert torch.equal(cut_labels[row, begin:], batch["labels"][row, begin:])
    logits = harness.logits_of(attachment, batch)[:, P:]
    assert logits.shape[:2] == batch["input_ids"].shape
    if family == "roberta":  # it counts positions from its padding, the only encoder here that knows of the left side
        columns = slice(2, None) if side == "left" else slice(0, 7)
        alone = {key: value[2:3, columns] for key, value in batch.items()}
        expected = harness.logits_of(attachment, alone)[:, P + 1 :]
        torch.testing.assert_close(logits[2:3, columns][:, 1:], expected, atol=1e-4, rtol=1e-4)


def _new_tokens(attachment: PromptAttachment, batch: dict[str, Tensor], **options: Any) -> Tensor:
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    prepared = attachment.prepare_inputs(inputs, generate=True)
    with torch.no_grad():
        out: Tensor = attachment.model.generate(
            **prepared, max_new_tokens=10, min_new_tokens=10, do_sample=False, **options
        )
    return out if attachment.model.config.is_encoder_decoder else out[:, prepared["input_ids"].shape[1] :]


@pytest.mark.parametrize("family", [*DECODERS, *SEQ2SEQ])
def test_generation_with_a_cache_is_generation_without(family: str) -> None:
    attachment = prompted(family)
    batch = harness.batch_for(attachment.model, padding="left" if family in DECODERS else "right")
    cached = _new_tokens(attachment, batch, use_cache=True)
    assert torch.equal(cached, _new_tokens(attachment, batch, use_cache=False))
    assert cached.shape[1] <= 11  # new tokens only, and a decoder's first
    columns = slice(2, None) if family in DECODERS else slice(0, 7)
    alone = {key: value[2:3, columns] for key, value in batch.items() if key != "labels"}
    assert torch.equal(_new_tokens(attachment, alone)[0], cached[2])
    assert torch.equal(_new_tokens(attachment, batch, repetition_penalty=1.0, num_beams=1), cached)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_generation_is_the_argmax_of_the_logits(family: str) -> None:
    attachment = prompted(family)
    ids = harness.batch_for(attachment.model, padding="none")["input_ids"][:1]
    new = _new_tokens(attachment, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for token in new[0]:
        logits = harness.logits_of(attachment, {"input_ids": ids})
        scores = logits[0, -1]
        scores[attachment.model.config.eos_token_id] = -1e9  # min_new_tokens
        assert int(scores.argmax()) == int(token)
        ids = torch.cat([ids, token[None, None]], dim=1)


@pytest.mark.parametrize("position", ["front", "after_first"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_packed_documents_each_have_their_prompt(family: str, position: str) -> None:
    attachment = prompted(family, prompt_position=position)
    ids = harness.batch_for(attachment.model, padding="none")["input_ids"]
    packed = {
        "input_ids": ids[:2].reshape(1, -1),
        "labels": ids[:2].reshape(1, -1),
        "position_ids": torch.arange(9).repeat(2)[None],
    }
    prepared = attachment.prepare_inputs(packed)
    at = int(position == "after_first")
    assert prepared["labels"][0, at : at + P].tolist() == [-100] * P
    assert prepared["position_ids"].tolist() == [[*range(9 + P)] * 2]
    with torch.no_grad():
        together = attachment.model(**prepared, use_cache=False).logits
    apart = harness.logits_of(attachment, {"input_ids": ids[:2]})
    torch.testing.assert_close(together.view(2, 9 + P, -1), apart, atol=1e-4, rtol=1e-4)


def test_packing_by_a_square_mask_in_opt() -> None:
    attachment = prompted("opt")
    ids = harness.batch_for(attachment.model, padding="none")["input_ids"]
    mask = torch.block_diag(*[torch.ones(9, 9).tril()] * 2)[None, None].bool()
    packed = {
        "input_ids": ids[:2].reshape(1, -1),
        "attention_mask": torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min),
        "position_ids": torch.arange(9).repeat(2)[None],
    }
    apart = harness.logits_of(attachment, {"input_ids": ids[:2]})
    together = harness.logits_of(attachment, packed).view(2, 9 + P, -1)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


# ---- initialisation


def test_random_is_uniform_in_the_paper_s_range() -> None:
    prompt = harness.attached("prompt_tuning", "bert", prompt_tuning_init="random", num_virtual_tokens=60)
    values = prompt.placed[0].part.embeddings.detach()
    assert float(values.min()) < -0.45
    assert float(values.max()) > 0.45
    assert float(values.abs().max()) <= 0.5


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_vocabulary_rows_carry_the_embedding_s_own_scale(family: str) -> None:
    attachment = prompted(family, prompt_tuning_init="sample_vocab", sample_vocab_size=10)
    attachment.initialise(attachment.model)
    table = attachment.model.get_submodule(attachment.embedding)(torch.arange(10))
    for row in attachment.prompt.embeddings:
        assert any(torch.allclose(row, candidate) for candidate in table)


def test_text_is_repeated_to_the_length() -> None:
    attachment = prompted("llama", prompt_tuning_init="text", prompt_tuning_init_text="the cat sat")
    tokenizer = tiny_tokenizer()
    attachment.initialise(attachment.model, tokenizer=tokenizer)
    ids = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    expected = attachment.model.model.embed_tokens(torch.tensor((ids * P)[:P]))
    assert torch.equal(attachment.prompt.embeddings, expected)
    with pytest.raises(UserError, match="needs a tokenizer"):
        attachment.initialise(attachment.model)


def test_class_labels_average_their_tokens() -> None:
    attachment = prompted("bert", prompt_tuning_init="class_labels")
    tokenizer = tiny_tokenizer()
    attachment.initialise(attachment.model, tokenizer=tokenizer, labels=["positive film", "negative"])
    table = attachment.model.bert.embeddings.word_embeddings
    for row, name in enumerate(["positive film", "negative"]):
        ids = torch.tensor(tokenizer(name, add_special_tokens=False)["input_ids"])
        torch.testing.assert_close(attachment.prompt.embeddings[row], table(ids).mean(0))
    assert bool(attachment.prompt.embeddings[2:].detach().any())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_class_labels_need_classes(family: str) -> None:
    """transformers gives every config the names LABEL_0 and LABEL_1, which are those of no class."""
    attachment = prompted(family, prompt_tuning_init="class_labels")
    with pytest.raises(UserError, match="names of classes, and here are none"):
        attachment.initialise(attachment.model, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    ("params", "labels", "told"),
    [
        ({"prompt_tuning_init": "text", "prompt_tuning_init_text": "the cat sat on the mat"}, [], "tokens of prompt"),
        ({"prompt_tuning_init": "class_labels"}, ["a", "b", "c", "d", "e"], "the first 4 of 5 classes"),
        ({"prompt_tuning_init": "class_labels"}, ["a", "b"], None),
    ],
)
def test_what_the_prompt_is_too_short_for_is_told(params: dict[str, Any], labels: list[str], told: str | None) -> None:
    attachment = prompted("bert", **params)
    attachment.initialise(attachment.model, tokenizer=tiny_tokenizer(), labels=labels)
    rows = TrainingRows(lambda: iter([]))
    attachment.start_from_rows(attachment.model, rows)
    assert len(rows.notes) == (told is not None)
    assert told is None or (told in rows.notes[0] and "num_virtual_tokens is 4" in rows.notes[0])


def test_class_labels_draw_the_rest_from_the_first_tokens() -> None:
    """So `sample_vocab_size` beside it is not called idle."""
    assert PromptTuningParams(prompt_tuning_init="class_labels", sample_vocab_size=9).idle_keys() == {}


# ---- saving, counts, refusals


def test_save_and_load_give_the_same_logits() -> None:
    trained, fresh = prompted("bert"), prompted("bert")
    batch = harness.batch_for(trained.model)
    harness.train_steps(trained, batch)
    harness.round_trip(trained, fresh)
    assert torch.equal(harness.logits_of(trained, batch), harness.logits_of(fresh, batch))
    assert list(trained.adapter_tensors()) == ["bert.embeddings.word_embeddings.prompt.embeddings"]


def test_factorised_embeddings_have_prompts_of_their_own_width() -> None:
    assert harness.numbers(prompted("albert").trainable_parameters()) == P * 16
    assert harness.numbers(prompted("t5").trainable_parameters()) == P * 32


def test_off_and_detached_prompts_leave_batches_alone() -> None:
    attachment = prompted("llama")
    batch = harness.batch_for(attachment.model)
    attachment.enable(False)
    assert attachment.prepare_inputs(batch)["input_ids"] is batch["input_ids"]
    attachment.enable()
    assert attachment.prepare_inputs(batch)["input_ids"].shape[1] == batch["input_ids"].shape[1] + P
    attachment.detach()
    assert attachment.prepare_inputs(batch)["input_ids"] is batch["input_ids"]


def test_what_cannot_be_prompted_is_refused() -> None:
    _, anatomy = harness.frozen("vit")
    assert "no token embeddings" in METHOD.check(anatomy, PromptTuningParams())[0]
    _, anatomy = harness.frozen("gpt2")
    assert "at most 63" in METHOD.check(anatomy, PromptTuningParams(num_virtual_tokens=64))[0]
    with pytest.raises(ValueError, match="needs a prompt_tuning_init_text"):
        PromptTuningParams(prompt_tuning_init="text")
    with pytest.raises(ValueError, match="has no effect"):
        PromptTuningParams(prompt_tuning_init_text="x")


def test_a_local_config_is_enough_to_refuse_too_many() -> None:
    config = {"model_type": "bert", "max_position_embeddings": 64}
    assert "at most 63" in METHOD.check_config(config, PromptTuningParams(num_virtual_tokens=64))[0]
    assert METHOD.check_config(config, PromptTuningParams(num_virtual_tokens=63)) == []
