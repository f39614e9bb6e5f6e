"""Whether a model is causal is tried on it: the same answer as its own masks give, whatever its config says."""

from __future__ import annotations

import pytest
import torch
import transformers

from peftcli.models.later_tokens import sees_later_tokens
from peftcli.models.read_anatomy import read_anatomy

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}
CASES = {
    "EuroBertModel": (transformers.EuroBertConfig, {**SMALL, "use_cache": True, **IDS}, True),
    "RoFormerModel": (transformers.RoFormerConfig, {**SMALL, "embedding_size": 32}, True),
    "RemBertModel": (transformers.RemBertConfig, {**SMALL, "input_embedding_size": 16}, True),
    "MPNetModel": (transformers.MPNetConfig, SMALL, True),
    "NomicBertModel": (transformers.NomicBertConfig, SMALL, True),
    "StableLmModel": (transformers.StableLmConfig, {**SMALL, "num_key_value_heads": 2, "use_cache": False}, False),
    "OpenAIGPTModel": (transformers.OpenAIGPTConfig, GPT, False),
    "BertGenerationEncoder": (transformers.BertGenerationConfig, {**SMALL, "is_decoder": True}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_causal_where_later_tokens_change_nothing(name: str) -> None:
    kind, settings, sees = CASES[name]
    with torch.device("meta"):
        model = getattr(transformers, name)(kind(**settings))
    before = torch.random.get_rng_state()
    assert sees_later_tokens(model) is sees
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_encoder_that_keeps_a_cache_is_an_encoder() -> None:
    with torch.device("meta"):
        config = transformers.EuroBertConfig(**CASES["EuroBertModel"][1])
        model = transformers.EuroBertForSequenceClassification(config)
    assert list(read_anatomy(model).layers) == ["encoder"]
