"""What a simulated run counts: bytes by moment and part, and the sum of such counts along a straight line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

SIZES = "sizes"
"""The moment under which sizes of the model stand, which belong to no moment."""


@dataclass
class Counted:
    """Bytes of a simulated run.

    Args:
        cells: bytes of each part at the fullest moment of each phase of a run, by (phase, part); under `SIZES` those of
            the whole `base`, of what the method has `added` to it, of its `largest_block`, of what is `outside` of
            blocks, of what the forward pass of the largest micro-batch has `kept` for the backward pass, of what an
            `evaluation` adds to the model, the numbers that are `trainable`, the products that the first step has
            `compiled`, and the C library's `heap` at its largest.
    """

    cells: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, phase: str, parts: Mapping[str, int]) -> None:
        """Note the fullest moment of a phase, if none that was fuller was noted; what has no name takes no memory."""
        parts = {part: size for part, size in parts.items() if part and size}
        if sum(parts.values()) > sum(self.at(phase).values()):
            for key in [key for key in self.cells if key[0] == phase]:
                del self.cells[key]
            self.cells.update({(phase, part): size for part, size in parts.items()})

    def at(self, phase: str) -> dict[str, int]:
        """Return the bytes by part of a phase."""
        return {part: size for (at, part), size in self.cells.items() if at == phase}

    def size(self, name: str) -> int:
        """Return one of the sizes."""
        return self.cells[(SIZES, name)]

    def set_size(self, name: str, size: int) -> None:
        """Note one of the sizes."""
        self.cells[(SIZES, name)] = size

    @property
    def own_base(self) -> int:
        """The bytes of the base without what the method added to it."""
        return self.size("base") - self.size("added")

    @property
    def parts(self) -> dict[str, int]:
        """The bytes by part at the fullest moment of all."""
        phases = {phase for phase, _ in self.cells if phase != SIZES}
        return max((self.at(phase) for phase in phases), key=lambda parts: sum(parts.values()), default={})

    @property
    def peak(self) -> int:
        """The bytes at the fullest moment of all."""
        return sum(self.parts.values())

    def with_more(self, others: Mapping[str, Counted], times: Mapping[str, float]) -> Counted:
        """Return what a model counts that grows from this one, by so many times what each other one has more."""
        keys = {*self.cells, *(key for other in others.values() for key in other.cells)}
        grown = {
            key: self.cells[key] + sum((others[name].cells[key] - self.cells[key]) * times[name] for name in others)
            for key in keys
        }
        return Counted(Counter({key: max(0, round(size)) for key, size in grown.items()}))
