"""One name of another tool, and the tools."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """One foreign name.

    Args:
        tools: who uses it.
        ours: our dotted key, or None if there is no such key.
        note: what else to say: another value, or why there is no such key.
    """

    tools: str
    ours: str | None
    note: str | None = None


AXOLOTL, LLAMA_FACTORY, SWIFT, TORCHTUNE = "axolotl", "LLaMA-Factory", "ms-swift", "torchtune"
LITGPT, UNSLOTH, TRL, TRANSFORMERS, HF_PEFT = "litgpt", "unsloth", "trl", "transformers", "HF peft"
