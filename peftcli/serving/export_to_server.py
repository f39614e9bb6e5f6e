"""`peft export --to` a server: from the name of the target to what writes it."""

from __future__ import annotations

from peftcli.serving.asked_export import Asked
from peftcli.serving.server_export import ServerExport
from peftcli.serving.server_targets import GGUF, GGUF_LORA, VLLM


def export_to_server(to: str, asked: Asked) -> ServerExport:
    """Write what a server takes.

    Args:
        to: one of `SERVER_TARGETS`.
        asked: what the user asked for.

    Raises:
        UserError: the server cannot be reached with this run; says what to do instead.
    """
    if to == VLLM:
        from peftcli.serving.export_vllm import export_vllm

        return export_vllm(asked)
    from peftcli.serving import export_llama_cpp  # imports the package gguf, which is an extra

    writers = {GGUF: export_llama_cpp.export_gguf, GGUF_LORA: export_llama_cpp.export_gguf_lora}
    return writers.get(to, export_llama_cpp.export_ollama)(asked)
