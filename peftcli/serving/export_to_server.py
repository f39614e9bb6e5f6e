"""`peft export --to` a server: from the name of the target to what writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from peftcli.deliverables.learnt_texts import PLAIN_TEXT
from peftcli.serving.asked_export import Asked, trained_on_plain_text
from peftcli.serving.server_export import ServerExport
from peftcli.serving.server_targets import GGUF, GGUF_LORA, OLLAMA, VLLM


def export_to_server(to: str, asked: Asked) -> ServerExport:
    """Write what a server takes.

    Args:
        to: one of `SERVER_TARGETS`.
        asked: what the user asked for.

    Raises:
        UserError: the server cannot be reached with this run; says what to do instead.
    """
    told = to != OLLAMA and trained_on_plain_text(asked.run)  # a Modelfile has no template then
    written = _writer(to)(asked)
    return replace(written, notes=(*written.notes, PLAIN_TEXT)) if told else written


def _writer(to: str) -> Callable[[Asked], ServerExport]:
    if to == VLLM:
        from peftcli.serving.export_vllm import export_vllm

        return export_vllm
    from peftcli.serving import export_llama_cpp  # imports the package gguf, which is an extra

    writers = {GGUF: export_llama_cpp.export_gguf, GGUF_LORA: export_llama_cpp.export_gguf_lora}
    return writers.get(to, export_llama_cpp.export_ollama)
