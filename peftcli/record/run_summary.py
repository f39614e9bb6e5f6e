"""How a run ended, as summary.json has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Summary:
    """How a run ended.

    Args:
        status: `finished`, `early_stopped` or `already_finished`.
        eval: metrics of exactly the adapter that was kept; None without validation rows.
        eval_before: the same before the first step.
        train_runtime: seconds of the loop, evaluation and checkpoints included, over all resumed parts.
        tokens_per_second: non-padding training tokens over the time spent in training steps.
        weights_dtype: of the frozen weights, in which evaluation computes.
        working_directory: where `peft train` ran: what relative paths of the recipe are relative to.
        data: what became of the rows: counts, format, evidence, template, cache.
        inputs: `RunInputs.as_dict()`.
    """

    status: str
    method: str
    task: str
    output_dir: str
    trainable: int
    saved: int
    total: int
    steps: int
    total_steps: int
    epochs: float
    train_loss: float | None
    eval: dict[str, Any] | None
    eval_before: dict[str, Any] | None
    best_step: int | None
    train_runtime: float
    train_tokens: int
    supervised_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    device: str
    precision: str
    versions: dict[str, str]
    weights_dtype: str = ""
    artifact: str = "adapter"
    stopped_early: bool = False
    working_directory: str = ""
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for summary.json and `--json`."""
        return asdict(self)
