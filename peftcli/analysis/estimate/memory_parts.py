"""What an estimate says: the peak of each device and its parts, and the time. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from peftcli.analysis.estimate.published_error import Tier, expected_error

PARTS = ("libraries", "weights", "adapter", "gradients", "optimizer", "activations", "logits", "fragments")
"""They add up to the peak: `libraries` is what a process holds before there is a model, `fragments` what the C
library's heap holds between blocks that live. Both are 0 on a GPU, whose allocator reports what lives."""


@dataclass(frozen=True)
class Device:
    """One device of a run.

    Args:
        peak_memory_bytes: comparable with that of `summary.json`.
        parts: bytes at the fullest moment, by part, and `evaluation`: what an evaluation adds to the model at its own
            fullest moment; it is no summand.
    """

    peak_memory_bytes: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a run, before it.

    Args:
        tier: `config`: rows of max_length, nothing read; `data`: the recipe's rows; `measured`: two steps were taken.
        seconds: of the whole run; None where no rate was measured.
        recomputes: whether gradient checkpointing is on.
        notes: what was assumed.
    """

    tier: Tier
    devices: list[Device]
    seconds: float | None
    recomputes: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """The peak of the fullest device."""
        return max(device.peak_memory_bytes for device in self.devices)

    @property
    def expected_error(self) -> str:
        """How far off such a peak was in trials: their range, and no bound."""
        return expected_error(self.tier)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `estimate --json` prints."""
        return {**asdict(self), "expected_error": self.expected_error}
