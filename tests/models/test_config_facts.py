"""Facts from a config.json read as plain data."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from peftcli.models.config_facts import kind_of, number_of_layers, positions, task_refusal, unknown_model_type, width
from peftcli.models.model_tasks import possible_tasks
from peftcli.tasks.task_table import task_info


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "bert", "is_decoder": True}, "decoder"),
        ({"model_type": "camembert"}, "encoder"),
        ({"model_type": "rembert"}, "encoder"),
        ({"model_type": "llama"}, "decoder"),
        ({"model_type": "t5"}, "encoder_decoder"),
        ({"model_type": "new", "is_encoder_decoder": True}, "encoder_decoder"),
        ({"model_type": "new", "architectures": ["NewForCausalLM"]}, "decoder"),
        ({"model_type": "new", "architectures": ["NewForMaskedLM"]}, "encoder"),
        ({"model_type": "new", "architectures": ["NewForMaskedLM"], "is_decoder": True}, "decoder"),
        ({"model_type": "new", "architectures": 5}, None),
        ({}, None),
    ],
)
def test_kind(config: dict[str, Any], kind: str | None) -> None:
    assert kind_of(config) == kind


def test_numbers_under_their_many_names() -> None:
    assert (number_of_layers({"n_layer": 3}), width({"n_embd": 8}), positions({"n_positions": 16})) == (3, 8, 16)
    assert number_of_layers({"encoder_layers": 2, "decoder_layers": 6}) == 6
    assert width({"text_config": {"hidden_size": 8}, "hidden_size": 99}) == 8
    assert (number_of_layers({}), width({"hidden_size": "8"}), positions({"n_ctx": True})) == (None, None, None)


def test_tasks() -> None:
    bert, gpt2, t5 = ({"model_type": name} for name in ("bert", "gpt2", "t5"))
    refused = {
        (config["model_type"], task)
        for config in (bert, gpt2, t5)
        for task in ("causal_lm", "seq2seq_lm", "sequence_classification", "token_classification")
        if task_refusal(config, task)
    }
    assert refused == {("bert", "causal_lm"), ("bert", "seq2seq_lm"), ("gpt2", "seq2seq_lm"), ("t5", "causal_lm")}


def test_model_types_of_the_installed_transformers() -> None:
    for known in ("bert", "gemma3_text", "xlm-roberta", "mobilebert"):
        assert unknown_model_type({"model_type": known}) is None
    assert unknown_model_type({"model_type": "own", "auto_map": {"AutoModel": "x"}}) is None
    message, suggestion = unknown_model_type({"model_type": "mobilbert"}) or ("", "")
    assert "mobilbert" in message and "mobilebert" in suggestion


@pytest.mark.parametrize(
    "name", ["bert", "camembert", "data2vec-text", "xmod", "reformer", "gpt2", "qwen2_audio", "t5", "marian"]
)
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq_lm"])
def test_what_is_refused_by_the_file_is_refused_by_the_loader(name: str, task: Any) -> None:
    """One list of encoders serves both; a model of one stack is no encoder-decoder, whatever transformers says."""
    config = AutoConfig.for_model(name)
    info = task_info(task)
    possible = task in possible_tasks(config)
    if task_refusal(config.to_dict(), task):
        assert not possible
    assert not (possible and name == "reformer")  # in training it takes rows of certain lengths only
    if possible:
        assert (task == "seq2seq_lm") == bool(config.is_encoder_decoder)
        assert type(config) in getattr(modeling_auto, info.mapping)
