"""The name of an entry among the prepared rows: a hash of all that decides its content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from peftcli.installed_versions import installed_versions

VERSION = 6  # of the store's layout and of everything that turns rows into tokens; a change makes old entries unused
_DECIDING = ("peftcli", "transformers", "tokenizers", "jinja2")
"""Packages whose other versions may make other tokens of the same rows."""


def key_of(facts: dict[str, Any]) -> str:
    """Return the name of the entry for everything that decides its content, besides the versions of libraries."""
    decided = {"version": VERSION, "packages": installed_versions(*_DECIDING), **facts}
    text = json.dumps(decided, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what a tokenizer does to text; its chat template is hashed apart, if it is used."""
    total = hashlib.blake2b(digest_size=16)
    total.update(type(tokenizer).__name__.encode())
    if tokenizer.is_fast:
        # serialised without truncation and padding: those are settings of the last call
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        total.update(tokenizer.backend_tokenizer.to_str().encode())
    else:
        total.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
        total.update(json.dumps(tokenizer.encode("A test, 1 2  3!\n x")).encode())
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    total.update(json.dumps([special, tokenizer.truncation_side, tokenizer.model_input_names]).encode())
    return total.hexdigest()
