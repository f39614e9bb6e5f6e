"""The record of a name that other tools use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A name that other tools use for one of our keys, or for something that has no key here.

    Args:
        tools: the tools that use it.
        ours: our dotted key, or None if there is no such key.
        note: a remark: how to write the value, or why there is no such key.
        asks: without the key something else may be trained, so that `peft convert` leaves it to the user.
    """

    tools: str
    ours: str | None
    note: str | None = None
    asks: bool = False


AXOLOTL, LLAMA_FACTORY, SWIFT, TORCHTUNE = "axolotl", "LLaMA-Factory", "ms-swift", "torchtune"
LITGPT, UNSLOTH, TRL, TRANSFORMERS, HF_PEFT = "litgpt", "unsloth", "trl", "transformers", "HF peft"
