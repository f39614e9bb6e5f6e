"""How what a method adds (modules, inputs) is named, so that it is told from the model's own. No torch here."""

from __future__ import annotations

ADDED = "peft_"
"""How the name of such a module begins; what lies below it belongs to it."""

ANSWERS = f"{ADDED}answers"
"""A key of batches that a method adds: (batch, seq) bool, from the first supervised token of each document to the
document's end. The model does not get it: a hook takes it out (`layers/prompt_ends.py`)."""


def is_added(path: str) -> bool:
    """Tell whether a module or parameter was added by a method.

    Args:
        path: its full path in the live model, such as `model.layers.0.self_attn.q_proj.peft_site.parts.0.lora_A`.
    """
    return any(name.startswith(ADDED) for name in path.split("."))
