"""llama.cpp's names of the ways in which byte-level tokenizers divide a text before they merge: `tokenizer.ggml.pre`.

llama.cpp's converter knows a tokenizer by the tokens of one text, so it knows those of published models. Here the name
follows from what tokenizer.json says, so that added tokens and new vocabularies change nothing. Source: the regular
expressions of `llm_tokenizer_bpe` in llama.cpp's src/llama-vocab.cpp, with the originals that its comments quote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peftcli.errors import UserError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel itself divides by, if it is not told otherwise."""
_DIGITS = r"\p{N}"
_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}"
_QWEN35 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH}?"
    rf"|\p{{N}}{{1,3}}|{_CASED}"
)
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED}"

_NAMES: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_GPT4O,), False): "gpt-4o",
    ((_TEKKEN,), True): "tekken",
}
"""By the expressions that a text is divided by, one after the other, and whether a whole word that is a token skips the
merges (`ignore_merges`)."""

_KEEP_MATCHES = (("Isolated", False), ("Removed", True))
"""Behaviour and inversion of a Split whose pieces are the matches of its pattern."""


def pretokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of what a byte-level tokenizer does before it merges.

    Args:
        tokenizer: tokenizer.json.

    Raises:
        UserError: llama.cpp has no name for it, or it changes a text in a way that llama.cpp does not.
    """
    normal = [step["type"] for step in _steps(tokenizer.get("normalizer"), "normalizers") if step["type"] != "NFC"]
    if normal:
        raise _unknown(f"normalizer {', '.join(normal)}")
    patterns = []
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        patterns += _patterns(step)
    name = _NAMES.get((tuple(patterns), bool(tokenizer["model"].get("ignore_merges"))))
    if name is None:
        raise _unknown(f"pattern {' and '.join(patterns) or 'for no division'}")
    return name


def _steps(step: Mapping[str, Any] | None, parts: str) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[parts]:
            yield from _steps(part, parts)
    else:
        yield step


def _patterns(step: Mapping[str, Any]) -> list[str]:
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return [_GPT2] if step.get("use_regex", True) else []
    if step["type"] == "Digits" and step.get("individual_digits"):
        return [_DIGITS]
    if step["type"] == "Split" and (step.get("behavior"), bool(step.get("invert"))) in _KEEP_MATCHES:
        return list(step["pattern"].values())
    raise _unknown(f"pre-tokenizer {step['type']}")


def _unknown(what: str) -> UserError:
    return UserError(
        f"llama.cpp has no name for this tokenizer's {what}, so texts would become other tokens there",
        suggestion="serve the merged model from its own files: peft merge, or --to vllm",
    )
