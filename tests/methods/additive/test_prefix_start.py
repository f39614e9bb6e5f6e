"""Prefixes that start from the keys and values of real text: what they are, from where, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli.errors import UserError
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.tasks.training_rows import TrainingRows
from tests.methods import harness
from tests.methods.additive.test_prefix_tuning import TEXT, loud
from tests.tiny import VOCAB, tiny_tokenizer

P = 4
IDS = torch.arange(7, 7 + P).unsqueeze(0)


def rows_of(ids: torch.Tensor) -> TrainingRows:
    return TrainingRows(lambda: iter([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]))


def started(family: str, rows: TrainingRows | None = None, **params: Any) -> Attachment:
    model, anatomy = harness.frozen(family)
    loud(model)
    torch.manual_seed(7)
    typed = PrefixTuningParams(**{"num_virtual_tokens": P, "encoder_hidden_size": 8, "prefix_init": "text", **params})
    attachment = apply_method(model, anatomy, typed)
    model.eval()
    attachment.initialise(model, tokenizer=tiny_tokenizer())
    attachment.enable(False)
    with torch.no_grad():
        attachment.start_from_rows(model, rows or rows_of(IDS))
    attachment.enable()
    return attachment


def plain(family: str) -> nn.Module:
    model, _ = harness.frozen(family)
    loud(model)
    return model.eval()


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "opt", "gpt_neox"])
def test_a_decoder_goes_on_as_if_the_text_stood_before(family: str, projection: bool) -> None:
    attachment = started(family, prefix_projection=projection)
    batch = harness.batch_for(attachment.model, padding="none")
    with torch.no_grad():
        longer = torch.cat([IDS.expand(len(batch["input_ids"]), -1), batch["input_ids"]], dim=1)
        expected = plain(family)(input_ids=longer).logits[:, P:]
    torch.testing.assert_close(harness.logits_of(attachment, batch), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", TEXT)
def test_every_family_starts_from_its_own_keys(family: str) -> None:
    """All of them by every route; a network gives the same keys and values as flat prefixes hold."""
    flat, produced = started(family, prefix_projection=False), started(family)
    drawn = harness.attached("prefix_tuning", family, num_virtual_tokens=P, prefix_projection=False)
    assert flat.adapter_tensors().keys() == produced.adapter_tensors().keys()
    for key, value in flat.adapter_tensors().items():
        assert not torch.equal(value, drawn.adapter_tensors()[key]) and bool(value.isfinite().all())
        torch.testing.assert_close(produced.adapter_tensors()[key], value, atol=1e-4, rtol=1e-4)
    assert not any(site.seen is not None for site in flat.model.modules() if hasattr(site, "seen"))
    assert harness.train_steps(produced, harness.batch_for(produced.model)) == set(produced.trainable_parameters())


def test_it_is_hf_pefts_function() -> None:
    from peft import PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_past_key_values

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = get_peft_model(plain("llama"), config).eval()
    with theirs.disable_adapter(), torch.no_grad():
        cache = theirs(input_ids=IDS, use_cache=True).past_key_values
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    given = initialize_kv_prefix_from_past_key_values(theirs, past_key_values=pairs)  # (P, layers * 2 * width)
    own = started("llama", prefix_projection=False).state_dict()
    for number, (name, index) in enumerate((name, layer) for layer in range(2) for name in ("key", "value")):
        ours = own[f"model.layers.{index}.self_attn.prefix.{name}"]  # (1, heads, P, head_dim)
        width = ours.shape[1] * ours.shape[3]
        their = given[:, number * width : (number + 1) * width].view(P, ours.shape[1], -1).transpose(0, 1)
        torch.testing.assert_close(ours[0], their, atol=1e-5, rtol=1e-5)


def test_a_text_of_the_recipe_is_repeated_or_cut() -> None:
    named = started("llama", prefix_init_text="the movie", prefix_projection=False)
    ids = torch.tensor(tiny_tokenizer()("the movie")["input_ids"])
    by_rows = started("llama", rows_of(ids.unsqueeze(0)), prefix_projection=False)
    for key, value in by_rows.state_dict().items():
        torch.testing.assert_close(named.state_dict()[key], value)


def test_random_and_missing_rows_leave_what_was_drawn() -> None:
    drawn = harness.attached("prefix_tuning", "llama", num_virtual_tokens=P, encoder_hidden_size=8).state_dict()
    for attachment in (
        started("llama", prefix_init="random"),
        started("llama", TrainingRows(lambda: iter([{"pixel_values": torch.zeros(1, 3)}]))),
    ):
        assert all(torch.equal(value, drawn[key]) for key, value in attachment.state_dict().items())


def test_first_tokens_leave_padding_out_and_repeat_short_rows() -> None:
    ids, mask = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = TrainingRows(lambda: iter([{"input_ids": ids, "attention_mask": mask}]))
    assert rows.first_tokens(4).tolist() == [[5, 6, 7, 8]]
    assert rows.first_tokens(8).tolist() == [[5, 6, 7, 8, 9, 5, 6, 7]]
    assert VOCAB > 9


def test_a_text_needs_a_tokenizer() -> None:
    model, anatomy = harness.frozen("llama")
    attachment = apply_method(model, anatomy, PrefixTuningParams(prefix_init_text="the movie"))
    with pytest.raises(UserError, match="prefix_init_text needs a tokenizer"):
        attachment.initialise(model)


@pytest.mark.parametrize("projection", [True, False])
def test_a_decoder_learns_from_there_at_the_default_rate(projection: bool) -> None:
    from tests.matrix.pairs import MAX_STEPS, build, train

    pair = build("gpt2", "causal_lm", "prefix_tuning", train_head=False, prefix_projection=projection)
    pair.model.eval()
    pair.attachment.enable(False)
    with torch.no_grad():
        pair.attachment.start_from_rows(pair.model, TrainingRows(lambda: iter([pair.batch.inputs])))
    pair.attachment.enable()
    trained = train(pair, 1e-2, 0.5)
    assert trained.steps < MAX_STEPS, trained


@pytest.mark.parametrize(("text", "notes"), [("the cat sat on the mat", 1), ("a", 0)])
def test_a_text_that_is_longer_than_the_prefix_is_told(text: str, notes: int) -> None:
    rows = rows_of(IDS)
    started("llama", rows, prefix_init_text=text)
    assert len(rows.notes) == notes
    assert all("prefix_init_text: num_virtual_tokens is 4" in note for note in rows.notes)
