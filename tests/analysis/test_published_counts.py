"""How many parameters each method trains, against what its paper or its official code prints.

A paper rounds, so its rounding is compared; beside it stands the exact number by the formula. Heads are left out, as
the papers do.

Left out because the paper's own number does not follow from its settings: LoRA's 0.35M for GPT-2 medium, its 6.0M and
3.0M for adapters of 64 in RoBERTa-large and its 14.2M for BitFit in GPT-3; and AdaLoRA's 1.27M, which depends on which
ranks were kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from transformers import (
    BartConfig,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from peftcli.analysis.counting import Counts, count_method
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TaskName

GPT3 = GPT2Config(n_layer=96, n_embd=12288, n_head=96, n_positions=2048)
GPT2_MEDIUM = GPT2Config(n_layer=24, n_embd=1024, n_head=16)
LLAMA_7B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, vocab_size=32000
)
ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
ROBERTA_LARGE = RobertaConfig(
    **{
        **ROBERTA.to_dict(),
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
)
BERT = BertConfig()
BERT_LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
BART_LARGE = BartConfig()
T5_BASE = T5Config(d_model=768, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12)
T5_XXL = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
                  tie_word_embeddings=False)  # fmt: skip
DEBERTA = {"vocab_size": 128100, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
           "share_att_key": True, "position_buckets": 256}  # fmt: skip
DEBERTA_XXL = DebertaV2Config(**DEBERTA, num_hidden_layers=48)
DEBERTA_BASE = DebertaV2Config(
    **DEBERTA, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
)
TASKS: dict[str, TaskName] = {
    "gpt2": "causal_lm",
    "llama": "causal_lm",
    "bart": "seq2seq_lm",
    "t5": "seq2seq_lm",
    "roberta": "token_classification",
    "deberta-v2": "token_classification",
    "bert": "sequence_classification",  # with its pooler, which BitFit counts
}


def rank(r: int, layers: int, *shapes: tuple[int, int]) -> int:
    """Return the numbers of rank-r pairs beside matrices of these shapes in each layer."""
    return layers * sum(r * (out + inner) for out, inner in shapes)


def bottleneck(width: int, size: int) -> int:
    """Return the numbers of an adapter, both biases counted."""
    return 2 * width * size + width + size


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    Args:
        where: the paper and its table.
        exact: what is counted without the head, by the formula.
        stated: as printed: in thousands, in millions, as a share of the base, or whole.
        saved: whether it is about the adapter file (prefixes: the network is gone), not about training.
    """

    where: str
    config: PretrainedConfig
    method: dict[str, Any]
    exact: int
    stated: str
    saved: bool = False

    def count(self) -> Counts:
        params = registry.info(self.method["name"]).params(**self.method)
        return count_method(self.config, TASKS[self.config.model_type], params)


SQUARE_3, SQUARE, SQUARE_L = (12288, 12288), (768, 768), (1024, 1024)
DEBERTA_MATRICES = (*[SQUARE] * 4, (3072, 768), (768, 3072))
LLAMA_MATRICES = (*[(4096, 4096)] * 4, *[(11008, 4096)] * 3)
NO_NORMS = {"train_layer_norm": False}
ROLES = ["attn.q", "attn.k", "attn.v", "attn.o"]


def lora(where: str, config: PretrainedConfig, r: int, exact: int, stated: str, *targets: str) -> Published:
    return Published(
        where, config, {"name": "lora", "r": r, "target_modules": list(targets or ROLES[::2])}, exact, stated
    )


PUBLISHED = [
    lora("LoRA, table 4", GPT3, 1, rank(1, 96, *[SQUARE_3] * 2), "4.7M"),
    lora("LoRA, table 4", GPT3, 8, rank(8, 96, *[SQUARE_3] * 2), "37.7M"),
    lora("LoRA, table 5", GPT3, 8, rank(8, 96, SQUARE_3), "18.9M", "attn.q"),
    lora("LoRA, table 5", GPT3, 2, rank(2, 96, *[SQUARE_3] * 4), "18.9M", *ROLES),
    lora("LoRA, table 2", ROBERTA, 8, rank(8, 12, *[SQUARE] * 2), "0.3M"),
    lora("LoRA, table 2", ROBERTA_LARGE, 8, rank(8, 24, *[SQUARE_L] * 2), "0.8M"),
    lora("LoRA, table 2", DEBERTA_XXL, 16, rank(16, 48, *[(1536, 1536)] * 2), "4.7M"),
    lora("AdaLoRA: LoRA", DEBERTA_BASE, 8, rank(8, 12, *DEBERTA_MATRICES), "1.33M", "attn", "ffn"),
    lora("AdaLoRA: LoRA", DEBERTA_BASE, 2, rank(2, 12, *DEBERTA_MATRICES), "0.33M", "attn", "ffn"),
    Published("QLoRA, 7B", LLAMA_7B, {"name": "qlora", "r": 64}, rank(64, 32, *LLAMA_MATRICES), "159.9M"),
    Published("AdaLoRA, its budget of 8 x 72 ranks", DEBERTA_BASE, {"name": "adalora", "init_r": 12, "target_r": 8},
              rank(8, 12, *DEBERTA_MATRICES) + 8 * 72, "1.33M", saved=True),
    Published("VeRA", ROBERTA, {"name": "vera", "r": 1024}, 24 * (768 + 1024), "0.043M"),
    Published("VeRA", ROBERTA_LARGE, {"name": "vera", "r": 256}, 48 * (1024 + 256), "0.061M"),
    Published("(IA)3", T5_XXL, {"name": "ia3"}, 24 * (6 * 4096 + 2 * 10240), "0.01%"),
    Published("OFTv2, Llama 2 7B", LLAMA_7B, {"name": "oft", "target_modules": "all-linear"},
              32 * (6 * 4096 + 11008) * 31 // 2, "17.65M"),
    Published("MiSS, Llama 2 7B", LLAMA_7B, {"name": "miss", "target_modules": "all-linear"},
              32 * 64 * (5 * 4096 + 2 * 11008), "87.0M"),
    Published("HiRA, Llama 2 7B", LLAMA_7B, {"name": "hira", "target_modules": [*ROLES[:3], "ffn.up", "ffn.down"]},
              rank(32, 32, *[(4096, 4096)] * 3, *[(11008, 4096)] * 2), "0.83%"),
    Published("SHiRA, abstract: 1-2% of the weights", LLAMA_7B,
              {"name": "shira", "r": 40, "target_modules": "all-linear"}, rank(40, 32, *LLAMA_MATRICES), "1%"),
    Published("LoRA, table 4: AdapterH", GPT3, {"name": "adapter", "bottleneck_size": 1, **NO_NORMS},
              192 * bottleneck(12288, 1), "7.1M"),
    Published("LoRA, table 4: AdapterH", GPT3, {"name": "adapter", "bottleneck_size": 8, **NO_NORMS},
              192 * bottleneck(12288, 8), "40.1M"),
    Published("LoRA, table 2: AdptH", ROBERTA_LARGE, {"name": "adapter", "bottleneck_size": 8, **NO_NORMS},
              48 * bottleneck(1024, 8), "0.8M"),
    Published("LoRA, table 2: AdptP", ROBERTA_LARGE,
              {"name": "adapter", "placement": "pfeiffer", "bottleneck_size": 16}, 24 * bottleneck(1024, 16), "0.8M"),
    Published("UniPELT: adapter", BERT, {"name": "adapter", "placement": "pfeiffer", "reduction_factor": 16},
              12 * bottleneck(768, 48), "895K"),
    Published("UniPELT: prefix", BERT, {"name": "prefix_tuning", "num_virtual_tokens": 10},
              12 * 2 * 10 * 768, "184K", saved=True),
    Published("UniPELT: BitFit", BERT, {"name": "bitfit"}, 12 * (6 * 768 + 3072 + 768) + 2 * 768, "103K"),
    Published("UniPELT: AP", BERT, {"name": "unipelt", "lora": None},
              12 * (bottleneck(768, 48) + 2 * 10 * 768 + 2 * 769), "1.1M", saved=True),
    Published("UniPELT: APL", BERT, {"name": "unipelt"},
              12 * (bottleneck(768, 48) + 2 * 10 * 768 + 2 * 8 * 2 * 768 + 4 * 769), "1.4M", saved=True),
    Published("BitFit", BERT, {"name": "bitfit"}, 102_912, "0.09%"),
    Published("BitFit, abstract", BERT_LARGE, {"name": "bitfit"}, 24 * (6 * 1024 + 4096 + 1024) + 2 * 1024, "0.08%"),
    Published("BitFit: query and middle of the MLP", BERT, {"name": "bitfit", "terms": ["attn.q", "ffn.up"]},
              12 * (768 + 3072), "0.04%"),
    Published("LoRA, table 2: BitFit", ROBERTA, {"name": "bitfit"}, 102_144, "0.1M"),
    Published("LayerNorm-simp., 7B", LLAMA_7B, {"name": "ln_tuning"}, 65 * 4096, "0.004%"),
    Published("LoReFT, table 1", LLAMA_7B, {"name": "loreft"}, 32 * 8 * (2 * 4096 + 1), "0.031%"),
    Published("LoReFT, table 3: without tied weights", LLAMA_7B,
              {"name": "loreft", "r": 4, "layers": [3, 9, 18, 24], "positions": "f5+l5", "share_weights": False},
              2 * 4 * 4 * (2 * 4096 + 1), "0.0039%"),
    Published("LoReFT, table 4", ROBERTA, {"name": "loreft", "r": 1, "positions": "f1"}, 12 * (2 * 768 + 1), "0.015%"),
    Published("LoReFT, table 4", ROBERTA_LARGE, {"name": "loreft", "r": 1, "positions": "f1"},
              24 * (2 * 1024 + 1), "0.014%"),
    Published("Compacter", T5_BASE, {"name": "compacter"}, 114_112 + 62 * 768, "0.073%"),
    Published("Compacter++, abstract", T5_BASE, {"name": "compacter", "placement": "ffn"}, 57_088 + 62 * 768, "0.047%"),
    Published("prefix tuning, table-to-text", GPT2_MEDIUM, {"name": "prefix_tuning", "num_virtual_tokens": 5},
              5 * 2 * 24 * 1024, "0.1%", saved=True),
    Published("He et al.: prefix", BART_LARGE, {"name": "prefix_tuning", "num_virtual_tokens": 200},
              14_745_600, "3.6%", saved=True),
    Published("He et al.: MAM", BART_LARGE, {"name": "mam", "num_virtual_tokens": 30, "bottleneck_size": 512},
              3 * 30 * 2 * 12 * 1024 + 24 * bottleneck(1024, 512), "6.7%", saved=True),
    Published("He et al.: MAM", ROBERTA, {"name": "mam", "num_virtual_tokens": 16, "bottleneck_size": 16},
              16 * 2 * 12 * 768 + 12 * bottleneck(768, 16), "0.5%", saved=True),
    Published("prompt tuning", T5_XXL, {"name": "prompt_tuning", "num_virtual_tokens": 5},
              20_480, "20,480"),
    Published("LoRA, table 4: PreEmbed", GPT3, {"name": "prompt_tuning", "num_virtual_tokens": 264},
              264 * 12288, "3.2M"),
]  # fmt: skip


def named(published: Published) -> str:
    return f"{published.where} {published.config.model_type} {published.stated}"


@pytest.mark.parametrize("published", PUBLISHED, ids=named)
def test_the_count_is_the_papers(published: Published) -> None:
    counts = published.count()
    assert (counts.saved if published.saved else counts.trainable - counts.head) == published.exact
    base = round(counts.reduction * counts.trainable) - counts.head
    assert as_printed(published.exact, base, published.stated) == published.stated


def as_printed(number: int, base: int, stated: str) -> str:
    """Return a number in the unit and with the digits of another one."""
    unit = stated[-1]
    digits = len(stated.rstrip("KM%").partition(".")[2])
    if unit.isdigit():
        return f"{number:,}"
    size = 100 * number / base if unit == "%" else number / {"K": 1e3, "M": 1e6}[unit]
    return f"{size:.{digits}f}{unit}"


def test_every_method_with_parameters_of_its_own_is_there() -> None:
    without = {"full", "freeze", "compose"}  # they have none
    without |= {"parallel_adapter", "lokr"}  # MAM is half a parallel adapter; LoKr's papers count other models' layers
    assert {published.method["name"] for published in PUBLISHED} == set(registry.names()) - without
