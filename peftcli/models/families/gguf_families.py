"""What a GGUF file for llama.cpp needs to know of each family, one row of data for each.

Source: `conversion/` and `src/models/` of llama.cpp as in llama-cpp-python 0.3.36, read in November 2026; the tests
compare with what those converters wrote. The names of tensors are those of the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Config = Mapping[str, Any]
"""A model's config as plain data."""
Kind = Literal["count", "number"]
Words = Literal["pieces", "bytes"]
"""Kinds of vocabularies: SentencePiece's, with scores; byte-level BPE, with merges."""


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter of a GGUF file.

    Args:
        key: below the architecture's name.
        name: of the config's value, or of one among its `rope_parameters`.
        kind: `count` for an unsigned integer, `number` for a float, both of 32 bits.
        missing: the value where the config has none; None leaves the key out.
    """

    key: str
    name: str
    kind: Kind = "count"
    missing: int | None = None


@dataclass(frozen=True)
class GgufFamily:
    """One family of models.

    Args:
        architecture: llama.cpp's name.
        settings: its hyper-parameters, those of the rotation of positions apart.
        activations: the values of `hidden_act` that llama.cpp computes for this architecture.
        reorders_rotary: whether the rows of query and key are reordered: transformers rotates the first half of a head
            with the second, llama.cpp neighbours.
        norm_shift: added to the weights of the norms, which transformers adds while it computes.
        left_out: tensors that llama.cpp takes from others.
        rotary_keys: what of the rotation is written: its base, also its kind with its factor, or nothing.
        rotary_size: what the key `rope.dimension_count` is: the size of a head, or a share of it; None leaves it out.
        rotary_kinds: values of `rope_type` that llama.cpp computes.
        words: kinds of vocabularies, the preferred one first.
        fixed: keys below `tokenizer.ggml.` that SentencePiece's file does not tell.
        sliding: of how many layers the last one looks at the whole text; None where the file does not depend on it.
        why_not: function of the config; returns why llama.cpp computes another model, or None.
        note: function of the config; returns what a user should know of the file, or None.
    """

    architecture: str
    settings: tuple[Setting, ...]
    activations: tuple[str, ...] = ("silu",)
    reorders_rotary: bool = False
    norm_shift: float = 0.0
    left_out: tuple[str, ...] = ()
    rotary_keys: Literal["none", "base", "kind"] = "kind"
    rotary_size: Literal["head", "share"] | None = None
    rotary_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    words: tuple[Words, ...] = ("pieces", "bytes")
    fixed: Mapping[str, bool] | None = None
    sliding: int | None = None
    why_not: Callable[[Config], str | None] = lambda _config: None
    note: Callable[[Config], str | None] = lambda _config: None


_SHAPE = (
    Setting("block_count", "num_hidden_layers"),
    Setting("context_length", "max_position_embeddings"),
    Setting("embedding_length", "hidden_size"),
    Setting("feed_forward_length", "intermediate_size"),
    Setting("attention.head_count", "num_attention_heads"),
    Setting("attention.head_count_kv", "num_key_value_heads"),
)
_RMS = Setting("attention.layer_norm_rms_epsilon", "rms_norm_eps", "number")
_LAYER_NORM = Setting("attention.layer_norm_epsilon", "layer_norm_eps", "number")
_HEAD = (Setting("attention.key_length", "head_dim"), Setting("attention.value_length", "head_dim"))
_SLIDING = Setting("attention.sliding_window", "sliding_window")
_FINAL_CAP = Setting("final_logit_softcapping", "final_logit_softcapping", "number")
_GELU = ("gelu_pytorch_tanh", "gelu_new")


def _window(config: Config) -> str | None:
    """llama.cpp lets every layer of these architectures look at the whole text."""
    window, length = config.get("sliding_window"), config["max_position_embeddings"]
    if window is None or window >= length or config.get("use_sliding_window") is False:
        return None
    return f"layers of this model attend to {window} tokens, in llama.cpp to all: answers differ in longer texts"


def _long_texts(config: Config) -> str | None:
    """llama.cpp chooses between LongRoPE's factors by the context that it is started with, not by a text's length."""
    original = config.get("original_max_position_embeddings")
    if (config.get("rope_parameters") or {}).get("rope_type") != "longrope":
        return _window(config)
    return f"texts of up to {original} tokens are computed as trained where llama.cpp is started with -c {original}"


def _phi_base(config: Config) -> str | None:
    """A file of this architecture has no place for the base of the rotation."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    return None if theta == 10000.0 else f"its rope_theta is {theta:g}, and llama.cpp computes with 10000"


def _gemma_scale(config: Config) -> str | None:
    """llama.cpp scales by the size of a head, but for the largest models, which it knows by their number of layers."""
    scalar, layers = config.get("query_pre_attn_scalar"), config["num_hidden_layers"]
    known = config["hidden_size"] / config["num_attention_heads"] if layers in (46, 62) else config["head_dim"]
    if scalar is not None and scalar != known:
        return f"query_pre_attn_scalar is {scalar}, and llama.cpp computes with {known:g}"
    return None


def _both_directions(config: Config) -> str | None:
    if config.get("use_bidirectional_attention"):
        return "its attention is bidirectional, and llama.cpp's is causal"
    return _gemma_scale(config)


_LLAMA = GgufFamily(
    "llama",
    (*_SHAPE, _RMS, *_HEAD, Setting("vocab_size", "vocab_size")),
    reorders_rotary=True,
    rotary_size="head",
    rotary_kinds=("default", "linear", "yarn", "llama3"),
    note=_window,
)
_QWEN2 = GgufFamily("qwen2", (*_SHAPE, _RMS, *_HEAD), note=_window)
_GEMMA = GgufFamily(
    "gemma",
    (*_SHAPE, _RMS, *_HEAD),
    activations=_GELU,
    norm_shift=1.0,
    left_out=("lm_head.weight",),
    rotary_keys="none",
    rotary_kinds=("default",),
    words=("pieces",),
    fixed={"add_space_prefix": False},
)
_ATTENTION_CAP = Setting("attn_logit_softcapping", "attn_logit_softcapping", "number")

GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _QWEN2,
    "qwen3": replace(_QWEN2, architecture="qwen3"),
    "granite": replace(
        _LLAMA,
        architecture="granite",
        settings=(
            *_SHAPE,
            _RMS,
            Setting("vocab_size", "vocab_size"),
            Setting("attention.scale", "attention_multiplier", "number"),
            Setting("embedding_scale", "embedding_multiplier", "number"),
            Setting("residual_scale", "residual_multiplier", "number"),
            Setting("logit_scale", "logits_scaling", "number"),
        ),
    ),
    "olmo2": replace(_QWEN2, architecture="olmo2"),
    "starcoder2": GgufFamily(
        "starcoder2",
        (*_SHAPE, Setting("attention.layer_norm_epsilon", "norm_epsilon", "number")),
        activations=("gelu_pytorch_tanh",),
        words=("bytes",),
        note=_window,
    ),
    "gemma2": replace(
        _GEMMA,
        architecture="gemma2",
        settings=(*_GEMMA.settings, _ATTENTION_CAP, _FINAL_CAP, _SLIDING),
        sliding=2,
        why_not=_gemma_scale,
    ),
    "gemma3_text": replace(
        _GEMMA,
        architecture="gemma3",
        settings=(*_GEMMA.settings, _FINAL_CAP, _SLIDING),
        left_out=(),
        rotary_keys="kind",
        rotary_kinds=("default", "linear"),
        sliding=6,
        why_not=_both_directions,
    ),
    "phi": GgufFamily(
        "phi2",
        (*_SHAPE, _LAYER_NORM),
        activations=("gelu_new", "gelu_pytorch_tanh"),
        rotary_keys="none",
        rotary_size="share",
        rotary_kinds=("default",),
        words=("bytes",),
        why_not=_phi_base,
    ),
    "phi3": GgufFamily(
        "phi3",
        (
            *_SHAPE,
            _RMS,
            Setting("rope.scaling.original_context_length", "original_max_position_embeddings"),
            Setting("attention.sliding_window", "sliding_window", missing=0),
        ),
        rotary_keys="base",
        rotary_size="share",
        rotary_kinds=("default", "longrope"),
        note=_long_texts,
    ),
}
