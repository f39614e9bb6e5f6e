"""An upper bound on what LoRA takes on a device, from shapes alone, to choose bits, checkpointing and the micro-batch.

Nothing is measured: a recommendation has to look at many plans for a model whose weights it does not load.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_MICRO_BATCH = 16
"""Rows; a step can have more by accumulation."""

SPARE = 0.9
"""Share of the memory that may be planned: the rest is for libraries and fragments."""


@dataclass(frozen=True)
class Shapes:
    """What memory depends on.

    Args:
        numbers: of the base; `linear_numbers` are those that 4 bits hold.
        adapter_numbers: that train.
        width, blocks: hidden size, and blocks of all stacks.
        row_tokens: of the longest row.
    """

    numbers: int
    linear_numbers: int
    adapter_numbers: int
    width: int
    blocks: int
    row_tokens: int

    def bytes_needed(self, rows: int, *, four_bits: bool, checkpointing: bool) -> float:
        """Return an upper bound in bytes for micro-batches of so many of the longest rows.

        16 bits a number of the base, or 4.5 with NF4's constants; 16 bytes a number that trains (value, gradient, two
        moments of AdamW in float32); and activations: 34 values of 16 bits for each token, number of width and block
        (Korthikanti et al. 2022, arXiv:2205.05198, without attention scores), or two and one block whole if recomputed.
        """
        linear = self.linear_numbers * (0.5625 if four_bits else 2.0)
        base = linear + 2.0 * (self.numbers - self.linear_numbers)
        values = 2 * self.blocks + 34 if checkpointing else 34 * self.blocks
        return base + 16.0 * self.adapter_numbers + 2.0 * values * rows * self.row_tokens * self.width


def memory_needs(shapes: Shapes, memory: int) -> tuple[int | None, frozenset[str]]:
    """Return the rows of a micro-batch that fit, and what they need: nothing, `checkpointing`, `4bit`, or both.

    What costs least is tried first; a micro-batch of one row is taken before anything is given up. None rows: nothing
    fits.
    """
    plans: tuple[frozenset[str], ...] = (
        frozenset(), frozenset({"checkpointing"}), frozenset({"4bit"}), frozenset({"4bit", "checkpointing"})
    )  # fmt: skip
    for needs in plans:
        rows = LARGEST_MICRO_BATCH
        while rows >= 1:
            found = shapes.bytes_needed(rows, four_bits="4bit" in needs, checkpointing="checkpointing" in needs)
            if found <= SPARE * memory:
                return rows, needs
            rows //= 2
    return None, plans[-1]
