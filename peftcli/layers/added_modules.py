"""How the modules that a method adds are named, so that they are told from the model's own. No torch here."""

from __future__ import annotations

ADDED = "peft_"
"""How the name of such a module begins; what lies below it belongs to it."""


def is_added(path: str) -> bool:
    """Tell whether a module or parameter was added by a method.

    Args:
        path: its full path in the live model, such as `model.layers.0.self_attn.q_proj.peft_site.parts.0.lora_A`.
    """
    return any(name.startswith(ADDED) for name in path.split("."))
