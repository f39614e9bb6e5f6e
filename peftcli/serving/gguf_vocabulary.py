"""The vocabulary of a GGUF file, from the tokenizer's files: SentencePiece's pieces and scores, or bytes and merges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer

from peftcli.deliverables.carried_files import TOKENIZER_CONFIG, read_object
from peftcli.errors import UserError
from peftcli.models.families.gguf_families import GgufFamily
from peftcli.serving.gguf_pretokenizers import pretokenizer_name

_SPACE = "▁"
_PIECES, _JSON = "tokenizer.model", "tokenizer.json"
_LOW = -1000.0
"""The score that llama.cpp's converter gives to tokens that are never merged."""
_LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)
"""Tokens that steer a model, though some files do not mark them so."""
_KINDS = gguf.TokenType


@dataclass
class _Token:
    text: bytes
    score: float
    kind: gguf.TokenType


def add_vocabulary(writer: gguf.GGUFWriter, directory: Path, family: GgufFamily, size: int) -> None:
    """Add the keys of a tokenizer to a file.

    Args:
        writer: of the file.
        directory: with the tokenizer's files and config.json.
        family: of the model.
        size: rows of the model's table of embeddings.

    Raises:
        UserError: the tokenizer is of a kind that llama.cpp cannot compute.
    """
    flags: dict[str, Any] = {}
    if (directory / _PIECES).is_file():
        tokens = _from_pieces(directory, size)
        flags["add_space_prefix"] = read_object(directory / TOKENIZER_CONFIG).get("add_prefix_space")
        flags |= family.fixed or {}
    else:
        tokenizer = _tokenizer_json(directory)
        if tokenizer["model"].get("byte_fallback"):
            tokens, flags["add_space_prefix"] = _from_merges(tokenizer, size), _adds_space(tokenizer)
        elif "bytes" in family.words and _byte_level(tokenizer):
            _add_bytes(writer, directory, tokenizer, size)
            return
        else:
            raise UserError(
                "llama.cpp has no tokenizer like this model's: it has neither all bytes as pieces nor a byte-level BPE",
                suggestion="serve the merged model from its own files: peft merge, or --to vllm",
            )
    _add_pieces(writer, tokens)
    _add_special(writer, directory, gguf.SpecialVocab(directory, n_vocab=len(tokens)))
    for key, value in flags.items():
        if isinstance(value, bool):
            writer.add_key_value(f"tokenizer.ggml.{key}", value, gguf.GGUFValueType.BOOL)


def _tokenizer_json(directory: Path) -> dict[str, Any]:
    path = directory / _JSON
    if not path.is_file():
        raise UserError(
            f"the model's tokenizer has neither {_PIECES} nor {_JSON}, and a GGUF file is made from one of them",
            suggestion="serve the merged model from its own files: peft merge",
        )
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data["model"]["type"] != "BPE":
        raise UserError(
            f"llama.cpp has no tokenizer like this model's ({data['model']['type']})",
            suggestion="serve the merged model from its own files: peft merge",
        )
    return data


def _byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps(tokenizer.get("pre_tokenizer"))


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a text begins with a space before it is divided."""
    words = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return '"Prepend"' in words or re.search(r'"prepend_scheme": "(always|first)"', words) is not None


def _add_pieces(writer: gguf.GGUFWriter, tokens: list[_Token]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([token.kind for token in tokens])


def _unused(size: int) -> list[_Token]:
    return [_Token(f"[PAD{number}]".encode(), -10000.0, _KINDS.UNUSED) for number in range(size)]


def _from_pieces(directory: Path, size: int) -> list[_Token]:
    """Return the tokens of tokenizer.model and of what was added to it, as llama.cpp's converter has them."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(directory / _PIECES))
    tokens = _unused(size)
    tests = {
        _KINDS.UNKNOWN: pieces.IsUnknown,
        _KINDS.CONTROL: pieces.IsControl,
        _KINDS.UNUSED: pieces.IsUnused,
        _KINDS.BYTE: pieces.IsByte,
    }
    for number in range(min(size, pieces.vocab_size())):
        kind = next((kind for kind, test in tests.items() if test(number)), _KINDS.NORMAL)
        tokens[number] = _Token(pieces.IdToPiece(number).encode(), pieces.GetScore(number), kind)
    for text, number in read_object(directory / "added_tokens.json").items():
        if number < size:
            tokens[number] = _Token(text.encode(), _LOW, _KINDS.USER_DEFINED)
    added = read_object(directory / TOKENIZER_CONFIG).get("added_tokens_decoder", {})
    for key, entry in added.items():
        if int(key) < size:
            tokens[int(key)] = _added(entry)
    if not added and (directory / _JSON).is_file():  # transformers 5 writes them there alone
        for entry in json.loads((directory / _JSON).read_text(encoding="utf-8")).get("added_tokens", []):
            if entry["id"] < size and tokens[entry["id"]].kind == _KINDS.UNUSED:
                tokens[entry["id"]] = _added(entry)
    return tokens


def _added(entry: Mapping[str, Any]) -> _Token:
    text = entry["content"]
    if entry.get("special") or _LOOKS_SPECIAL.fullmatch(text):
        return _Token(text.encode(), _LOW, _KINDS.CONTROL)
    return _Token(text.replace(_SPACE, " ").encode(), _LOW, _KINDS.USER_DEFINED)


def _from_merges(tokenizer: Mapping[str, Any], size: int) -> list[_Token]:
    """Return the pieces of a tokenizer.json with SentencePiece's merges.

    llama.cpp merges the pair whose piece has the highest score; minus the number of a piece's first merge gives the
    order of the merges. Its converter writes one score for all, with which it reads texts in another way.
    """
    model = tokenizer["model"]
    tokens = _unused(size)
    order: dict[str, int] = {}
    for number, merge in enumerate(model["merges"]):
        order.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1), number)
    for text, number in model["vocab"].items():
        if number < size:
            kind = _KINDS.BYTE if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) else _KINDS.NORMAL
            kind = _KINDS.UNKNOWN if text == model.get("unk_token") else kind
            tokens[number] = _Token(text.encode(), -float(order[text]) if text in order else _LOW * 1000, kind)
    for entry in tokenizer.get("added_tokens", []):
        if entry["id"] < size and tokens[entry["id"]].kind != _KINDS.UNKNOWN:
            tokens[entry["id"]] = _added(entry)
    return tokens


def _add_bytes(writer: gguf.GGUFWriter, directory: Path, tokenizer: Mapping[str, Any], size: int) -> None:
    name = pretokenizer_name(tokenizer)
    tokens = list(_byte_tokens(directory, size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    _add_special(writer, directory, gguf.SpecialVocab(directory, load_merges=True))


def _byte_tokens(directory: Path, size: int) -> Iterator[tuple[str, gguf.TokenType]]:
    """Yield texts and kinds; llama.cpp compares added tokens with texts as they are, so these are decoded."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    for number in range(size):
        if number not in texts:
            yield f"[PAD{number}]", _KINDS.UNUSED
        elif number not in added:
            yield texts[number], _KINDS.NORMAL
        else:
            text = texts[number]
            if not added[number].normalized:
                text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
            if added[number].special or _LOOKS_SPECIAL.fullmatch(text):
                yield text, _KINDS.CONTROL
            else:
                yield text.replace(_SPACE, " "), _KINDS.USER_DEFINED


def _add_special(writer: gguf.GGUFWriter, directory: Path, special: gguf.SpecialVocab) -> None:
    """Add merges, special tokens and the chat template, and whether a text begins and ends with a special token.

    The package takes the latter from tokenizer.json's template; where there is none, from what the tokenizer does.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("a")["input_ids"]
    special.add_special_token.setdefault("bos", bool(ids) and ids[0] == tokenizer.bos_token_id)
    special.add_special_token.setdefault("eos", bool(ids) and ids[-1] == tokenizer.eos_token_id)
    special.add_to_gguf(writer, quiet=True)
