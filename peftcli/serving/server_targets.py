"""What `peft export --to` writes for servers, by name, and the choices that go with it. No torch: help lists them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from peftcli.errors import UserError

GGUF, GGUF_LORA, OLLAMA, VLLM = "gguf", "gguf-lora", "ollama", "vllm"

SERVER_TARGETS: Mapping[str, str] = {
    GGUF_LORA: "the adapter for llama.cpp",
    GGUF: "the merged model for llama.cpp",
    OLLAMA: "a directory for `ollama create`",
    VLLM: "an adapter checked against vLLM's rules",
}
"""By the name that `--to` takes: what is written."""

GGUF_TYPES = ("f32", "f16", "q8_0")
"""Types of the matrices of a GGUF file."""
DEFAULT_TYPE: Mapping[str, str] = {GGUF_LORA: "f32", GGUF: "f16", OLLAMA: "f16"}
"""The type where none is given; a target without one takes none."""

_INSTALL = 'python -m pip install "peftcli[gguf]"'


def gguf_type(to: str, wanted: str | None) -> str:
    """Return the type of a file's matrices.

    Args:
        to: one of the targets that write GGUF.
        wanted: as given.

    Raises:
        UserError: there is no such type, or the package that writes GGUF files is not installed.
    """
    if find_spec("gguf") is None:
        raise UserError(f"--to {to} needs the package gguf", suggestion=_INSTALL)
    kind = wanted or DEFAULT_TYPE[to]
    if kind not in GGUF_TYPES:
        raise UserError(f"--type {kind} is none of: {', '.join(GGUF_TYPES)}", suggestion="q8_0 is the smallest")
    return kind
