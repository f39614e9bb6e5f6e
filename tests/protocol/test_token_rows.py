"""Trained rows of the vocabulary's tables beside every method: their values, their merge, tied tables, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli.analysis.counting import count_method, count_params
from peftcli.errors import UserError
from peftcli.merging.live_rules import fold_rules
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.protocol.rows_beside.added_rows import WantedRows
from peftcli.protocol.rows_beside.row_rules import folding_rules
from peftcli.recipe.schema import ModelSpec, Recipe
from tests.matrix.cases import CASES
from tests.methods.harness import batch_for, disturb, logits_of, loss_of
from tests.tiny import save_tiny, tiny_config, tiny_model

NEW = {120: "<call>", 121: "<done>"}
LORA = {"r": 2, "target_modules": ["attn.q"]}
NO_ROWS = {"full": "it trains every row", "qlora": "its 4-bit base has a test of its own"}
METHODS = [name for name in CASES if name not in NO_ROWS]


def with_rows(
    name: str, params: dict[str, Any], rows: WantedRows | None = None, family: str = "gpt2", **config: Any
) -> Attachment:
    model = tiny_model(family, "causal_lm", **config)
    typed = registry.info(name).params(**params)
    attachment = apply_method(model, read_anatomy(model), typed, rows=rows)
    attachment.initialise(model)
    model.eval()
    return attachment


def with_tokens(attachment: Attachment, numbers: list[int]) -> dict[str, Any]:
    batch = batch_for(attachment.model)
    batch["input_ids"][:, 1 : 1 + len(numbers)] = torch.tensor(numbers)
    return batch


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_keeps_and_merges_rows(name: str) -> None:
    params = dict(CASES[name].params)
    attachment = with_rows(name, params, WantedRows(new=NEW))
    batch = with_tokens(attachment, [120, 121])
    loss_of(attachment, batch).backward()
    key = "transformer.wte.token_adapter.trainable_tokens_delta"
    rows = attachment.trainable_parameters()[key]
    assert rows.shape == (2, 32) and rows.grad is not None and rows.grad.abs().sum(1).min() > 0
    assert key in attachment.multiplicative()  # weight decay would draw it to zero, where no word is
    disturb(attachment)
    moved = logits_of(attachment, batch)
    for placed in attachment.rows:
        placed.part.enabled = False
    assert (moved - logits_of(attachment, batch)).abs().max() > 1e-2
    attachment.enable()
    state = {key: tensor.clone() for key, tensor in attachment.state_dict().items()}
    other = with_rows(name, params, WantedRows(new=NEW))
    other.load_state_dict(state)
    torch.testing.assert_close(logits_of(other, batch), moved, atol=1e-6, rtol=1e-6)
    typed = registry.info(name).params(**params, trainable_token_indices={"transformer.wte": [120, 121]})
    if registry.method(name).why_not_mergeable(typed) is None:
        merged = tiny_model("gpt2", "causal_lm")
        anatomy = read_anatomy(merged)
        fold_rules(merged, folding_rules(merged, anatomy, typed, state))
        torch.testing.assert_close(merged(**_inputs(batch)).logits, moved, atol=1e-4, rtol=1e-4)
    attachment.detach()
    assert not attachment.rows and not any("peft_" in name for name, _ in attachment.model.named_parameters())


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "t5", "bart", "phi"])
def test_each_table_of_a_family_has_its_rows(family: str) -> None:
    """An untied head has rows of its own; tied tables, of encoder and decoder too, share them; a scaled one scales."""
    task = "seq2seq_lm" if family in ("t5", "bart") else "causal_lm"
    model = tiny_model(family, task)
    attachment = apply_method(
        model, read_anatomy(model), registry.info("lora").params(**LORA), rows=WantedRows(new=NEW)
    )
    attachment.initialise(model)
    batch = batch_for(model)
    batch["input_ids"][:, 0] = 120
    base = logits_of(attachment, batch)
    disturb(attachment)
    moved = logits_of(attachment, batch)
    plain = tiny_model(family, task)
    with torch.no_grad():
        tables = {id(weight): weight for _, weight in _tables(plain)}
        assert len(attachment.row_numbers()) == len(tables)
        for path, rows in attachment.row_numbers().items():
            own = attachment.row_tensors()[f"{path}.token_adapter.trainable_tokens_delta"]
            plain.get_submodule(path).weight[rows] = own
    lora = apply_method(plain, read_anatomy(plain), registry.info("lora").params(**LORA))
    rest = {key: tensor for key, tensor in attachment.state_dict().items() if key not in attachment.row_tensors()}
    lora.load_state_dict(rest)
    torch.testing.assert_close(logits_of(lora, batch), moved, atol=1e-5, rtol=1e-5)
    assert (moved - base).abs().max() > 1e-3


def _tables(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    head = model.get_output_embeddings()
    return [("embeddings", model.get_input_embeddings().weight), *([("head", head.weight)] if head is not None else [])]


def test_a_list_is_of_the_embeddings_and_a_mapping_of_each_table() -> None:
    for chosen, tables in (
        ([5, 3], {"model.embed_tokens": [3, 5]}),
        ({"head": [7]}, {"lm_head": [7]}),
        ({"embed_tokens": [1], "lm_head": [1, 2]}, {"model.embed_tokens": [1], "lm_head": [1, 2]}),
    ):
        attachment = with_rows("lora", {**LORA, "trainable_token_indices": chosen}, family="llama")
        assert attachment.row_numbers() == tables


@pytest.mark.parametrize(
    ("params", "message", "remedy"),
    [
        ({"trainable_token_indices": [3, 128]}, "row 128 is beyond transformer.wte", "rows 0 to 127"),
        ({"trainable_token_indices": {"wpe": [3]}}, "'wpe' is no table", "embeddings, head, transformer.wte"),
        ({"trainable_token_indices": [3], "modules_to_save": ["wte"]}, "whole of transformer.wte is trained", "leave"),
        ({"trainable_token_indices": {"wte": [3], "lm_head": [4]}}, "lm_head is tied", "both need the same"),
        (
            {"trainable_token_indices": [3], "target_modules": ["wte"], "use_dora": True},
            "what the whole table",
            "leave",
        ),
        ({"trainable_token_indices": ["cat"]}, "no vocabulary is at hand", "by number"),
    ],
)
def test_what_cannot_be_trained_is_refused(params: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        with_rows("lora", {**LORA, **params})
    assert message in str(caught.value) and remedy in str(caught.value)


def test_rows_belong_to_the_whole_composition() -> None:
    inner = {"name": "lora", **LORA, "trainable_token_indices": [3]}
    with pytest.raises(ValueError, match="belong to the whole composition"):
        registry.info("compose").params.model_validate({"parts": [inner]})
    whole = with_rows("compose", {"parts": [{"name": "lora", **LORA}], "trainable_token_indices": [3]})
    assert whole.row_numbers() == {"transformer.wte": [3]}
    assert whole.saved_size() == with_rows("compose", {"parts": [{"name": "lora", **LORA}]}).saved_size() + 32


def test_they_are_counted_once(tmp_path: Any) -> None:
    config = tiny_config("gpt2")
    plain, rows = (
        count_method(config, "causal_lm", registry.info("lora").params(**LORA, **more))
        for more in ({}, {"trainable_token_indices": ["cat", "dog", "mat"]})
    )
    assert rows.trainable - plain.trainable == rows.saved - plain.saved == rows.total - plain.total == 3 * 32
    save_tiny(tmp_path / "base", "llama", "causal_lm")
    spec = ModelSpec(name_or_path=str(tmp_path / "base"), new_special_tokens=["<call>", "<done>"])
    recipe = Recipe(model=spec, task="causal_lm", method=registry.info("lora").params(**LORA), output_dir="runs/x")
    new = count_params(recipe)
    assert new.trainable - plain.trainable == 2 * 2 * 32  # the head is untied
    assert new.by_module["model.embed_tokens.token_adapter"] == 64
