"""Counts against the papers' anchors, and against live models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, PretrainedConfig, RobertaConfig

from peftcli.analysis.counting import Counts, count_attachment, count_method
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TaskName
from tests.tiny import tiny_config, tiny_model

ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
LLAMA_7B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32000
)


def task_of(config: PretrainedConfig) -> TaskName:
    """The task whose head is smallest; counts below leave the head out."""
    return "token_classification" if config.model_type in ("bert", "roberta") else "causal_lm"


def count(config: PretrainedConfig, task: TaskName, name: str, num_labels: int = 2, **options: Any) -> Counts:
    return count_method(config, task, registry.info(name).params(**options), num_labels=num_labels)


@pytest.mark.parametrize(
    ("config", "options", "saved"),
    [
        (ROBERTA, {}, 294_912),  # Hu et al. 2021, table 2: 0.3M
        (BertConfig(), {}, 294_912),
        (BertConfig(), {"target_modules": "all-linear"}, 12 * 8 * (4 * 1536 + 2 * 3840)),
        (GPT2Config(), {}, 294_912),  # q and v as slices: c_attn whole would be 12 * 8 * (768 + 2304)
        (GPT2Config(), {"target_modules": ["c_attn"]}, 294_912),
        (LLAMA_7B, {"r": 16}, 32 * 2 * 16 * 8192),
        (GPT2Config(n_embd=1024, n_head=16, n_layer=24), {"r": 4}, 24 * 2 * 4 * 2048),
    ],
)
def test_lora_counts_what_the_formula_says(config: PretrainedConfig, options: dict[str, Any], saved: int) -> None:
    counts = count(config, task_of(config), "lora", **options)
    assert counts.saved == counts.trainable - counts.head == saved


def test_the_head_is_trainable_and_not_saved_with_the_method() -> None:
    counts = count(ROBERTA, "sequence_classification", "lora", num_labels=3)
    head = 768 * 768 + 768 + 3 * 768 + 3
    assert (counts.saved, counts.head, counts.trainable) == (294_912, head, 294_912 + head)
    full = 124_055_040 + head  # RoBERTa-base without its pooler
    assert counts.total == full + 294_912
    assert counts.percent == pytest.approx(100 * counts.trainable / counts.total)
    assert counts.reduction == pytest.approx(full / counts.trainable)
    assert counts.by_module["roberta.encoder.layer.*.attention.self.query"] == 147_456
    assert sum(counts.by_module.values()) == counts.trainable


def test_tied_weights_count_once() -> None:
    assert count(GPT2Config(), "causal_lm", "lora").total == 124_439_808 + 294_912
    tied = count(GPT2Config(), "causal_lm", "lora", modules_to_save=["lm_head"])
    assert tied.trainable == tied.saved == 294_912 + 50257 * 768


def test_biases_and_magnitudes_are_counted() -> None:
    dora = count(BertConfig(), "token_classification", "lora", use_dora=True)
    assert dora.saved == 294_912 + 24 * 768
    biased = count(BertConfig(), "token_classification", "lora", bias="lora_only")
    assert biased.saved == 294_912 + 24 * 768
    sliced = count(GPT2Config(), "causal_lm", "lora", bias="lora_only")
    assert sliced.saved == 294_912 + 24 * 768, "only the slices' biases, not c_attn's"


def test_pissa_saves_twice_what_it_trains() -> None:
    counts = count(BertConfig(), "token_classification", "lora", init_lora_weights="pissa")
    assert (counts.trainable - counts.head, counts.saved) == (294_912, 2 * 294_912)


def test_adalora_trains_its_first_and_saves_its_last_rank() -> None:
    counts = count(BertConfig(), "token_classification", "adalora", init_r=12, target_r=8, target_modules=["attn.q"])
    assert counts.trainable - counts.head == 12 * 12 * (2 * 768 + 1)
    assert counts.saved == 12 * 8 * (2 * 768 + 1)


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_a_live_model_has_the_numbers_of_its_config(family: str, freeze_a: bool) -> None:
    config = tiny_config(family)
    task: TaskName = "seq2seq_lm" if family == "t5" else task_of(config)
    params = registry.info("lora").params(r=4, target_modules="all-linear", freeze_a=freeze_a)
    model = tiny_model(family, task, num_labels=2)
    live = count_attachment(apply_method(model, read_anatomy(model), params), params)
    assert live == count_method(config, task, params)
    assert live.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert live.total == sum(p.numel() for p in model.parameters())


def test_a_quantised_weight_counts_what_it_stands_for() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    params = registry.info("lora").params(target_modules=["attn.q"])
    model = tiny_model("llama")
    expected = count_method(tiny_config("llama"), "causal_lm", params).total
    old = model.model.layers[0].mlp.up_proj
    quantised = bnb.nn.Linear4bit(32, 48, bias=False, compute_dtype=torch.float32)
    quantised.load_state_dict(old.state_dict())
    model.model.layers[0].mlp.up_proj = quantised.to("cpu")
    assert quantised.weight.numel() < old.weight.numel()
    assert count_attachment(apply_method(model, read_anatomy(model), params), params).total == expected
