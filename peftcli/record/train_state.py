"""The state of a run: what moves while it trains, apart from tensors and random states."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import Recipe


@dataclass
class TrainState:
    """Everything of a run that moves, apart from tensors and random states.

    Args:
        step: optimizer steps taken.
        tokens, supervised_tokens: non-padding and supervised tokens (rows, for classification) seen so far.
        seconds: of the loop so far, over all resumed parts; `step_seconds` without evaluations and checkpoints.
        window: loss sum, its count, tokens and seconds since the last logged step.
        loss_sum, loss_count: of the whole run.
        best_value, best_step, best_metrics: the best evaluation so far.
        best_settled: whether the adapter then had its final form (`Attachment.settled`).
        bad_evaluations: evaluations in a row without improvement.
        evaluation_due: whether the evaluation after the last step was begun and not finished.
        eval_before: metrics before the first step.
        compute_dtype: what training computes in; a probe could decide otherwise after a resume.
        recomputes: whether by gradient checkpointing; free memory could decide otherwise after a resume.
        compiles: whether its blocks are compiled; a trial could decide otherwise after a resume.
        method: the hyper-parameters that the method is attached by, where training decided some (`params_now`).
        inputs: `RunInputs.as_dict()`; None in checkpoints of earlier versions.
        done: whether training ended, by steps or early.
        stopped_early: whether early stopping ended it.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_count: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    best_settled: bool = False
    best_metrics: dict[str, Any] | None = None
    bad_evaluations: int = 0
    evaluation_due: bool = False
    eval_before: dict[str, Any] | None = None
    compute_dtype: str | None = None
    recomputes: bool | None = None
    compiles: bool | None = None
    method: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    done: bool = False
    stopped_early: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the checkpoint."""
        return asdict(self)

    def method_of(self, recipe: Recipe) -> MethodParams:
        """Return the hyper-parameters that the run's method is attached and saved by."""
        if self.method is None:
            return recipe.method
        return registry.info(recipe.method.name).params.model_validate_json(json.dumps(self.method))
