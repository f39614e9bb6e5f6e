"""What a merge did. No torch here: the command line imports it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class MergeReport:
    """The result of `peft merge`.

    Args:
        output: the directory that was written.
        dtype: of most of its numbers.
        method: what was folded in.
        changed, tensors: how many tensors differ from the base's, of how many.
        size: bytes of the weight files.
        verified: whether the merged model agreed with base + adapter; in half precision, on rows that tell it from the
            base.
        rows: rows of the run's data in that comparison.
        max_abs_diff, mean_abs_diff: of the outputs (logits); None without verification.
        tolerance: what max_abs_diff may be; a quarter of it for the mean.
        agreement: share of predictions (tokens, labels, numbers) that are the same.
        adapter_effect: mean absolute difference that the adapter itself makes to the base's outputs.
        carried: share of that difference that the merged model has: 0 is the base, 1 base + adapter.
        quantization_agreement: for a run trained in 4 or 8 bits, the share of greedy tokens or labels that are the same
            as with the quantised base it was trained on.
        requantized: what `--requantize` cost: the comparison of the quantised result with base + adapter.
        notes: what else the user should know.
        adapter: whether the output is a run with an adapter, not a model: `changed` counts modules.
    """

    output: str
    dtype: str
    method: str
    changed: int
    tensors: int
    size: int
    verified: bool = False
    rows: int = 0
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None
    tolerance: float | None = None
    agreement: float | None = None
    adapter_effect: float | None = None
    carried: float | None = None
    quantization_agreement: float | None = None
    requantized: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)
    adapter: bool = False

    @property
    def written_in(self) -> str:
        """What the numbers of the weight files are, for reading."""
        return self.dtype if self.requantized is None else "4 bits"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self)
