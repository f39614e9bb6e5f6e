"""The tokens that transformers goes on with: what every server is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

NEW = 12


def expected(directory: Path, ids: list[int]) -> list[int]:
    """Return the tokens that a model goes on with, the end left out.

    Args:
        directory: of the model.
        ids: of the prompt.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    made = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, len(ids) :].tolist()
    return made[: made.index(2)] if 2 in made else made
