"""Tiny, randomly initialised models of every family, and tokenizers built in memory. No network.

Sizes: hidden 32, 4 heads (2 key-value heads where the family has them), 2 blocks per stack, vocabulary 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from peftcli.tasks.task_table import TASKS

VOCAB = 128
HIDDEN = 32
HEADS = 4
KV_HEADS = 2
LAYERS = 2
POSITIONS = 64

_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
_BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}

# model_type: (kind, the config's own settings). Kind decides which task heads exist.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("encoder", _ENCODER),
    "roberta": ("encoder", {**_ENCODER, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}),
    "xlm-roberta": (
        "encoder",
        {**_ENCODER, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1},
    ),
    "distilbert": (
        "encoder",
        {
            "vocab_size": VOCAB,
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": 48,
            "max_position_embeddings": POSITIONS,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
            "qa_dropout": 0.0,
        },
    ),
    "electra": ("encoder", {**_ENCODER, "embedding_size": 16}),
    "albert": ("encoder", {**_ENCODER, "embedding_size": 16, "classifier_dropout_prob": 0.0}),
    "deberta-v2": (
        "encoder",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": HIDDEN},
    ),
    "modernbert": (
        "encoder",
        {
            **{k: v for k, v in _ENCODER.items() if not k.endswith("_prob")},
            "num_hidden_layers": 2,
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "reference_compile": False,
        },
    ),
    "gpt2": ("decoder", _GPT2),
    "gpt_neo": (
        "decoder",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("decoder", {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}),
    "bloom": (
        "decoder",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "opt": (
        "decoder",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": 48,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dropout": 0.0,
        },
    ),
    "falcon": (
        "decoder",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "phi": ("decoder", _LLAMA),
    "phi3": ("decoder", _LLAMA),
    "llama": ("decoder", _LLAMA),
    "mistral": ("decoder", {**_LLAMA, "sliding_window": 16, "head_dim": 8}),
    "qwen2": ("decoder", _LLAMA),
    "qwen3": ("decoder", {**_LLAMA, "head_dim": 16}),
    "gemma2": ("decoder", {**_LLAMA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3_text": (
        "decoder",
        {**_LLAMA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "sliding_window_pattern": 2},
    ),
    "starcoder2": ("decoder", {**_LLAMA, "use_bias": True, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "olmo2": ("decoder", _LLAMA),
    "granite": ("decoder", _LLAMA),
    "mixtral": ("decoder", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("decoder", {**_LLAMA, **_MOE, "head_dim": 16}),
    "t5": ("seq2seq", _T5),
    "mt5": ("seq2seq", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("seq2seq", _BART),
    "mbart": ("seq2seq", _BART),
    "pegasus": ("seq2seq", {k: v for k, v in _BART.items() if k != "forced_eos_token_id"}),
    "whisper": (
        "speech",
        {
            **_BART,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": POSITIONS,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "vit": (
        "vision",
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 8,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
}

FAMILIES: list[str] = list(_CONFIGS)
ENCODERS = [name for name, (kind, _) in _CONFIGS.items() if kind == "encoder"]
DECODERS = [name for name, (kind, _) in _CONFIGS.items() if kind == "decoder"]
SEQ2SEQ = [name for name, (kind, _) in _CONFIGS.items() if kind == "seq2seq"]
OTHERS = [name for name, (kind, _) in _CONFIGS.items() if kind in ("speech", "vision")]
CORE_FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "qwen3", "gemma3_text"]

_AUTO = {
    "base": "AutoModel",
    **{name: task.info.auto_class for name, task in TASKS.items()},
    "masked_lm": "AutoModelForMaskedLM",
    "image_classification": "AutoModelForImageClassification",
    "speech_seq2seq": "AutoModelForSpeechSeq2Seq",
}


def kind_of(family: str) -> str:
    """Return encoder, decoder, seq2seq, speech or vision."""
    return _CONFIGS[family][0]


def tiny_config(family: str, **changes: Any) -> PretrainedConfig:
    """Return a fresh small config of a family (its `model_type`), with `changes` on top."""
    model_type = "gemma3_text" if family == "gemma3" else family
    config: PretrainedConfig = AutoConfig.for_model(model_type, **{**_CONFIGS[model_type][1], **changes})
    return config


def tiny_model(family: str, task: str = "causal_lm", num_labels: int = 3, seed: int = 0, **changes: Any) -> nn.Module:
    """Return a randomly initialised small model in eval mode, float32, on the CPU.

    Args:
        family: one of `FAMILIES`.
        task: a task of the recipe, or base, masked_lm, image_classification, speech_seq2seq.
        seed: of the weights; the caller's random state is left as it was.
        changes: settings of the config, besides those of the family's tiny one.
    """
    import transformers

    config = tiny_config(family, **changes)
    if task == "image_classification" or (task in TASKS and TASKS[task].info.has_labels):
        config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = getattr(transformers, _AUTO[task]).from_config(config)
    return model.eval()


_CORPUS = "the cat sat on the mat and the dog ran to the red blue green house that was not very good or bad film story"


def tiny_tokenizer(
    *,
    bos: bool = True,
    eos: bool = True,
    pad: bool = True,
    cls: bool = False,
    add_bos: bool = False,
    add_eos: bool = False,
    padding_side: str = "right",
    chat_template: str | None = None,
    model_max_length: int = POSITIONS,
    roberta: bool = False,
) -> PreTrainedTokenizerFast:
    """Return a small BPE tokenizer, trained in memory: printable ASCII survives a round trip, ids stay below `VOCAB`.

    Ids 0 to 4 are <pad>, <s>, </s>, <unk>, <mask> (RoBERTa: <s>, <pad>, ...), whatever of them the tokenizer declares.

    Args:
        bos, eos, pad: which special tokens the tokenizer declares.
        cls: an encoder's tokenizer: <s> text </s>, pairs <s> a </s> b </s>, with a mask token.
        add_bos, add_eos: which of them a call adds.
        roberta: RoBERTa's ids for <s> and <pad>, as its tiny config has them.
    """
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta else ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    before = "<s> " if cls or add_bos else ""
    after = " </s>" if cls or add_eos else ""
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}",
            pair=f"{before}$A </s> $B{after}" if cls else f"{before}$A $B{after}",
            special_tokens=[("<s>", specials.index("<s>")), ("</s>", 2)],
        )
    declared = {"unk_token": "<unk>"}
    declared |= {"bos_token": "<s>"} if bos else {}
    declared |= {"eos_token": "</s>"} if eos else {}
    declared |= {"pad_token": "<pad>"} if pad else {}
    declared |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"} if cls else {}
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=padding_side, model_max_length=model_max_length, **declared
    )
    if chat_template is not None:
        result.chat_template = chat_template
    return result


def save_tiny(directory: str | Path, family: str, task: str = "causal_lm", **changes: Any) -> Path:
    """Write a tiny model and its tokenizer as a checkpoint directory, and return it.

    Args:
        directory: made if it is missing.
        family, task, changes: as in `tiny_model`; `base` writes the model without a head.
    """
    path = Path(directory)
    model = tiny_model(family, task, **changes)
    model.save_pretrained(path)  # type: ignore[operator]  # every tiny model is a PreTrainedModel
    kind = kind_of(family)
    if kind == "encoder":
        tiny_tokenizer(cls=True, roberta="roberta" in family).save_pretrained(path)
    elif kind in ("decoder", "seq2seq"):
        tiny_tokenizer(add_eos=kind == "seq2seq").save_pretrained(path)
    return path
