"""An upper bound on what LoRA takes on a device, from shapes alone, to choose bits, checkpointing and the micro-batch.

Nothing is measured: a recommendation has to look at many plans for a model whose weights it does not load.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_MICRO_BATCH = 16
"""Rows; a step can have more by accumulation."""

NF4_BYTES = 0.5625
"""Of a number in NF4, with its constants."""

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
        number_bytes: of a number of the base that is not packed.
        linear_bytes: of one of those that 4 bits hold, as the base is now.
        can_quantise: whether the base can be asked for in 4 bits.
        vocabulary: logits of a token; 0 for a task without them.
        logit_tokens: tokens of which there are logits at a time, at most; None is all of a micro-batch.
    """

    numbers: int
    linear_numbers: int
    adapter_numbers: int
    width: int
    blocks: int
    row_tokens: int
    number_bytes: float = 2.0
    linear_bytes: float = 2.0
    can_quantise: bool = True
    vocabulary: int = 0
    logit_tokens: int | None = None

    def bytes_needed(self, rows: int, *, four_bits: bool, checkpointing: bool) -> float:
        """Return an upper bound in bytes for micro-batches of so many of the longest rows.

        The base as it is held, or 4.5 bits a number with NF4's constants; 16 bytes a number that trains (value,
        gradient, two moments of AdamW in float32); activations: 34 values of 16 bits for each token, number of width
        and block (Korthikanti et al. 2022, arXiv:2205.05198, without attention scores), or two and one block whole if
        recomputed; and 12 bytes a logit: it, its float32 copy and its gradient.
        """
        linear = self.linear_numbers * (NF4_BYTES if four_bits else self.linear_bytes)
        base = linear + self.number_bytes * (self.numbers - self.linear_numbers)
        values = 2 * self.blocks + 34 if checkpointing else 34 * self.blocks
        tokens = rows * self.row_tokens
        of_logits = tokens if self.logit_tokens is None else min(tokens, self.logit_tokens)
        activations = 2.0 * values * tokens * self.width + 12.0 * of_logits * self.vocabulary
        return base + 16.0 * self.adapter_numbers + activations


def memory_needs(shapes: Shapes, memory: int) -> tuple[int | None, frozenset[str]]:
    """Return the rows of a micro-batch that fit, and what they need: nothing, `checkpointing`, `4bit`, or both.

    What costs least is tried first; a micro-batch of one row is taken before anything is given up. None rows: nothing
    fits.
    """
    plans: tuple[frozenset[str], ...] = (
        frozenset(), frozenset({"checkpointing"}), frozenset({"4bit"}), frozenset({"4bit", "checkpointing"})
    )  # fmt: skip
    plans = plans if shapes.can_quantise else plans[:2]
    for needs in plans:
        rows = LARGEST_MICRO_BATCH
        while rows >= 1:
            found = shapes.bytes_needed(rows, four_bits="4bit" in needs, checkpointing="checkpointing" in needs)
            if found <= SPARE * memory:
                return rows, needs
            rows //= 2
    return None, plans[-1]
