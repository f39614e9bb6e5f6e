"""How the tokens of a generated text are chosen. No torch here: the command line makes these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from peftcli.errors import UserError

OnText = Callable[[str], None]
"""Receives pieces of a text while it is generated."""


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding by default; a temperature above 0 samples, several beams search.

    Args:
        temperature: divides the logits before a token is drawn; 0 takes the likeliest one.
        top_p: tokens are drawn from the smallest set with at least this probability (Holtzman et al. 2020).
        top_k: tokens are drawn from this many of the likeliest ones; 0 from all.
        num_beams: sequences that a beam search keeps.

    Raises:
        UserError: `top_p` or `top_k` without a temperature, beams with one, or no finite number.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not math.isfinite(value := getattr(self, name)):  # NaN is neither below a limit nor above one
                raise UserError(f"{name} is {value}, no number to draw with", suggestion="give a finite number")
        if not self.temperature and (self.top_p < 1.0 or self.top_k):
            name = "top_p" if self.top_p < 1.0 else "top_k"
            raise UserError(
                f"{name} is for sampling, and without a temperature the likeliest token is taken",
                suggestion="set a temperature above 0: --temperature 0.7, or /set temperature 0.7 in a chat",
            )
        if self.temperature and self.num_beams > 1:
            raise UserError(
                "a beam search takes the likeliest tokens, and a temperature draws them",
                suggestion="choose one: num_beams, or a temperature",
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn by chance."""
        return self.temperature > 0

    def settings(self) -> dict[str, Any]:
        """Return keys of transformers' `GenerationConfig`; those of sampling only where it samples."""
        if not self.samples:
            return {"do_sample": False, "num_beams": self.num_beams}
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"do_sample": True, "num_beams": 1, **drawn}


GREEDY = Decoding()


def token_ids(value: int | Iterable[int] | None) -> list[int]:
    """Return a setting that names one token, several or none, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
