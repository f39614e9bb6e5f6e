"""Pieces of experts in a base's files: a checkpoint may hold each expert, and gate and up, in tensors of their own.

transformers joins them while it loads: it stacks the experts, and puts gate and up one below the other. A merge undoes
that for what changes, one piece at a time: a piece is some output features of one expert.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter


@dataclass(frozen=True)
class ExpertPiece:
    """Where one tensor of a file lies in a 3-D parameter (experts, out, in).

    Args:
        expert: the number of the expert.
        part: which of the equal parts of its output features, from 0.
        parts: how many there are.
    """

    expert: int
    part: int
    parts: int

    def shape_in(self, whole: Sequence[int]) -> tuple[int, int]:
        """Return the shape that the piece must have in a parameter of this shape."""
        return whole[1] // self.parts, whole[2]


def is_of_pieces(converter: WeightConverter) -> bool:
    """Tell whether a conversion does nothing but stack experts, and join their output features."""
    operations = [(type(each), each.dim) for each in converter.operations if hasattr(each, "dim")]
    stacked = [(MergeModulelist, 0)]
    joined = [*stacked, (Concatenate, 1)] if len(converter.source_patterns) > 1 else stacked
    return operations == joined and len(operations) == len(converter.operations)


def expert_piece(name: str, pattern: str, converters: Sequence[WeightConverter]) -> ExpertPiece | None:
    """Return where a tensor of a file lies in the parameter that transformers makes of it; None if that is not known.

    Args:
        name: in the file.
        pattern: of the conversion that matched the name, such as `mlp.experts.*.gate_proj.weight`.
        converters: of the model.
    """
    for converter in converters:
        if pattern in converter.source_patterns and is_of_pieces(converter):
            before, star, behind = pattern.partition("*.")
            place = rf"{re.escape(before.rstrip('.').rpartition('.')[2])}\.(\d+)\.{re.escape(behind)}$"
            found = re.search(place, name)
            if star and found:
                part = converter.source_patterns.index(pattern)
                return ExpertPiece(int(found.group(1)), part, len(converter.source_patterns))
    return None
