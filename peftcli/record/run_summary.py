"""How a run ended, as summary.json has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
"""What a file must hold where a number is: see `typed_record`."""


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
        processes: of a run of several; None of one process, as the two that follow.
        strategy: `ddp`, where each process holds the whole base, or `fsdp`, where it is divided among them.
        base_bytes_per_process: what the base's tensors take in the process that holds most of them.
    """

    status: str
    method: str
    task: str
    output_dir: str
    trainable: Count
    saved: Count
    total: Count
    steps: Count
    total_steps: Count
    epochs: Amount
    train_loss: Finite | None
    eval: dict[str, Any] | None
    eval_before: dict[str, Any] | None
    best_step: Count | None
    train_runtime: Amount
    train_tokens: Count
    supervised_tokens: Count
    tokens_per_second: Amount
    peak_memory_bytes: Count
    device: str
    precision: str
    versions: dict[str, str]
    weights_dtype: str = ""
    artifact: Literal["adapter", "model"] = "adapter"
    stopped_early: bool = False
    working_directory: str = ""
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    processes: Count | None = None
    strategy: Literal["ddp", "fsdp"] | None = None
    base_bytes_per_process: Count | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for summary.json and `--json`."""
        of_several = ("processes", "strategy", "base_bytes_per_process")
        return {key: value for key, value in asdict(self).items() if value is not None or key not in of_several}
