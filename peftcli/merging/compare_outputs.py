"""Compare a merged model with base + adapter on rows of the run's own data.

Both compute on the same unquantised base in the same dtype, one model in memory at a time, one row at a time (so
without padding). Logits are compared: those of a row's class, or those of the last positions that count for the task.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftcli.data.prepare import prepare
from peftcli.data.rows.padding import collate
from peftcli.data.rows.row_set import Row, sequences_of
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.ignored_label import IGNORED
from peftcli.layers.quantised.quantised_weights import make_plain
from peftcli.merging.carried_effect import CarriedEffect, carried_effect
from peftcli.merging.live_rules import fold_rules
from peftcli.merging.module_effects import ModuleEffects, changed_projections, module_outputs
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.models.load.dtypes import computes_well, dtype_name
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tokenizers import fit_to_tokenizer
from peftcli.models.model_tasks import auto_class
from peftcli.process_state import quiet_transformers
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import ModelSpec
from peftcli.tasks.generation import stop_tokens
from peftcli.tasks.seq2seq_lm import decoder_inputs
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import task_info

ROWS = 16
"""Rows compared."""
POSITIONS = 16
"""Positions compared in a row of a language model or a tagger: the last ones that count."""
LONGEST = 512
"""Tokens of a row that are computed at most."""

# What max|difference| may be, over the largest |logit| of base + adapter (at least 1): the rounding of every merged
# weight to the dtype, carried through the layers. Measured on tiny and small real models: 1e-6, 2e-3 and 1e-2.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}

TIMES_ROUNDING = 10.0
"""What a difference may be of the one that rounding alone makes. Sharp attention carries the rounding of its scores to
some positions a hundred times as far as to the rest; there two draws differ by a factor of up to 3."""


@dataclass(frozen=True)
class Comparison:
    """The differences between two models' outputs.

    Args:
        max_abs_diff, mean_abs_diff: over all compared logits.
        agreement: share of positions (rows, for classes) with the same prediction: the largest logit, the same classes
            of several, or a number that is the same to three digits.
        tolerance: for max_abs_diff.
        mean_tolerance: for mean_abs_diff.
        rounding: the largest difference that rounding alone makes, where it was measured.
    """

    max_abs_diff: float
    mean_abs_diff: float
    agreement: float
    tolerance: float
    mean_tolerance: float
    rounding: float | None = None

    @property
    def within(self) -> bool:
        """Whether the models agree; a difference that is not a number does not."""
        return self.max_abs_diff <= self.tolerance and self.mean_abs_diff <= self.mean_tolerance

    def beside(self, rounding: Comparison) -> Comparison:
        """Return the comparison with a tolerance for models that carry rounding far.

        Args:
            rounding: of one of the models with itself, its weights rounded once more (`round_once_more`).
        """
        if not math.isfinite(rounding.max_abs_diff):
            return self
        return replace(
            self,
            tolerance=max(self.tolerance, TIMES_ROUNDING * rounding.max_abs_diff),
            mean_tolerance=max(self.mean_tolerance, TIMES_ROUNDING * rounding.mean_abs_diff),
            rounding=rounding.max_abs_diff,
        )


def compare(reference: Tensor, other: Tensor, dtype: torch.dtype, *, several: bool = False) -> Comparison:
    """Compare logits.

    Args:
        reference: (positions, classes), float32.
        other: the same shape.
        dtype: coarsest that either model was rounded to.
        several: a row can have several classes, each by the sign of its logit.
    """
    if reference.shape != other.shape:
        return Comparison(float("inf"), float("inf"), 0.0, 0.0, 0.0)
    difference = (reference - other).abs()
    tolerance = TOLERANCE[dtype] * max(1.0, float(reference.abs().max()))
    return Comparison(
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        agreement=_agreement(reference, other, several),
        tolerance=tolerance,
        mean_tolerance=tolerance / 4,
    )


def allowing_rounding(
    result: Comparison, dtype: torch.dtype, merged: Tensor, rounded: Callable[[], Tensor]
) -> Comparison:
    """Return a comparison, with a tolerance for what rounding does to this model where it needs one.

    In half precision nothing more is allowed: ten times what that rounding does can be more than an adapter does.

    Args:
        result: of `compare`.
        dtype: coarsest that either model was rounded to.
        merged: the outputs of one of the models.
        rounded: computes them with its weights rounded once more; called only where they are needed.
    """
    if result.within or dtype != torch.float32:
        return result
    return result.beside(compare(merged, rounded(), dtype))


def _agreement(reference: Tensor, other: Tensor, several: bool) -> float:
    if several:
        return float(((reference > 0) == (other > 0)).all(-1).float().mean())
    if reference.shape[-1] == 1:  # regression: the same to three digits
        return float(torch.isclose(reference, other, rtol=1e-3, atol=1e-3).float().mean())
    return float((reference.argmax(-1) == other.argmax(-1)).float().mean())


def sample_rows(run: RunToMerge) -> list[Row]:
    """Return up to `ROWS` rows: of the run's validation split, else of its training rows.

    Raises:
        UserError: the run's data is no longer where it was.
    """
    recipe = run.recipe
    if recipe.data is None:
        raise UserError("the run's recipe has no data to verify with", suggestion="merge with --no-verify")
    try:
        data = prepare(
            recipe.data,
            recipe.task,
            run.tokenizer,
            seed=recipe.seed,
            labels=run.labels,
            model_max_positions=run.anatomy.max_positions,
            target_positions=run.anatomy.max_target_positions,
        )
    except UserError as error:
        raise UserError(
            f"the run's data cannot be read to verify the merge: {error}",
            suggestion="run this where the data is, or merge with --no-verify",
        ) from error
    held_out = next((rows for rows in data.validation.values() if len(rows)), data.train)
    return [held_out[index] for index in range(min(ROWS, len(held_out)))]


def compute_dtype(output: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which both models compute: the merged weights', where this device does it well."""
    return output if output == torch.float32 or computes_well(output, device) else torch.float32


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype with the largest tolerance."""
    return max((dtype for dtype in dtypes if dtype in TOLERANCE), key=lambda dtype: TOLERANCE[dtype])


@dataclass(frozen=True)
class Reference:
    """What base + adapter gives.

    Args:
        adapted: its outputs.
        plain: those of the base without what the method changed; a task head is as it was trained. None for a complete
            model.
        stops: tokens at which the base ends a text; empty for a model that generates none.
        modules: what the adapter does at single projections; None for a complete model, and on a quantised base.
    """

    adapted: Tensor
    plain: Tensor | None
    stops: tuple[int, ...]
    modules: ModuleEffects | None = None

    def effect_in(self, merged: Tensor) -> CarriedEffect | None:
        """Return what of the adapter's effect is in another model's outputs; None for a complete model."""
        if self.plain is None or merged.shape != self.adapted.shape:
            return None
        return carried_effect(self.plain, self.adapted, merged)


def reference_outputs(
    run: RunToMerge,
    spec: ModelSpec,
    rows: list[Row],
    world: World,
    dtype: torch.dtype | None,
    *,
    rounded: bool = False,
) -> Reference:
    """Return the outputs of base + adapter; of a combination, those of the base with the rules folded in.

    Args:
        run: the run.
        spec: of the base: the unquantised one, or the run's own quantised one.
        rows: of the run's data.
        world: the processes that share the rows.
        dtype: of the base's weights, quantised ones included; None leaves it to `spec`, and them as they are.
        rounded: of a combination, round the folded weights once more.
    """
    if dtype is not None:
        spec = spec.model_copy(update={"dtype": dtype_name(dtype)})
    loaded = load_model(spec, run.recipe.task, labels=run.labels, device=world.device, seed=run.recipe.seed)
    model = loaded.model
    if dtype is not None:
        make_plain(model, loaded.dtype)
    fit_to_tokenizer(model, run.tokenizer, seed=run.recipe.seed)
    stops = tuple(stop_tokens(model, run.tokenizer)) if model.can_generate() else ()
    if run.combined is not None:
        return _of_rules(model, run, rows, world, loaded.dtype, stops, rounded=rounded)
    if run.adapter is None:
        return Reference(outputs(model, rows, run, world, loaded.dtype), None, stops)
    attachment = apply_method(model, run.anatomy, run.adapter.params, masters=False)
    own = {name: value.detach().clone() for name, value in _trained_of_base(attachment).items()}
    attachment.load_state_dict(run.adapter.state)
    adapted = outputs(model, rows, run, world, loaded.dtype, attachment.prepare_inputs)
    paths = [] if dtype is None else changed_projections(model, run.rules())
    changed = module_outputs(model, paths)
    attachment.enable(False)
    with torch.no_grad():
        for name, value in _trained_of_base(attachment).items():
            value.copy_(own[name])
    effects = None if dtype is None else ModuleEffects(module_outputs(model, paths), changed)
    return Reference(adapted, outputs(model, rows, run, world, loaded.dtype), stops, effects)


def _of_rules(
    model: PreTrainedModel,
    run: RunToMerge,
    rows: list[Row],
    world: World,
    dtype: torch.dtype,
    stops: tuple[int, ...],
    *,
    rounded: bool,
) -> Reference:
    """Return the outputs of a base that has the rules of a combination folded in; the base is changed."""
    assert run.combined is not None
    plain = outputs(model, rows, run, world, dtype)
    fold_rules(model, run.combined)
    if rounded:
        round_once_more(model)
    return Reference(outputs(model, rows, run, world, dtype), plain, stops)


def _trained_of_base(attachment: Attachment) -> dict[str, Tensor]:
    """Return the base's own parameters that an adapter gives values to, by name; a task head is none of the base's."""
    names = dict.fromkeys([*attachment.unfrozen, *attachment.to_save])
    return {name: attachment.model.get_parameter(name) for name in names if name not in attachment.head}


def open_merged(
    directory: Path, run: RunToMerge, config: Any, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Load the merged model. Its config comes from memory: config.json is not written yet.

    Raises:
        UserError: its weights are not those that transformers looks for.
    """
    with quiet_transformers():
        model, report = auto_class(config, run.recipe.task).from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=run.spec.trust_remote_code,
        )
    beside = report["unexpected_keys"] if run.whole is None else ()
    wrong = [*report["missing_keys"], *beside, *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"the merged model does not load: {sorted(map(str, wrong))[:3]}", suggestion="report this")
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded


def outputs(
    model: PreTrainedModel,
    rows: list[Row],
    run: RunToMerge,
    world: World,
    dtype: torch.dtype,
    prepare_inputs: Callable[..., dict[str, Any]] | None = None,
) -> Tensor:
    """Return the compared logits, (positions, classes), float32, on the CPU; each process computes some rows."""
    own = _each_output(model, rows[world.rank :: world.size], run, world.device, dtype, prepare_inputs)
    shares = world.gather(own)
    return torch.cat([shares[number % world.size][number // world.size] for number in range(len(rows))])


def all_outputs(
    model: PreTrainedModel, rows: list[Row], run: RunToMerge, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the same, computed by this process alone."""
    return torch.cat(_each_output(model, rows, run, device, dtype, None))


@torch.no_grad()
def _each_output(
    model: PreTrainedModel,
    rows: list[Row],
    run: RunToMerge,
    device: torch.device,
    dtype: torch.dtype,
    prepare_inputs: Callable[..., dict[str, Any]] | None,
) -> list[Tensor]:
    """Return the compared logits of each row."""
    found = []
    kind = task_info(run.recipe.task).reads
    model.eval()
    for row in (sequences_of(row)[0] if kind == "text" else row for row in rows):
        batch = {key: value[:, :LONGEST] if value.ndim > 1 else value for key, value in _batch(row, run).items()}
        labels = batch.pop("labels", None)
        if kind == "pairs" and labels is not None:
            batch["decoder_input_ids"] = decoder_inputs(model, labels)
        batch = {key: value.to(device) for key, value in batch.items()}
        with _computing(device, dtype):
            logits = model(**(prepare_inputs(batch) if prepare_inputs else batch)).logits
        found.append(_compared(logits.float(), labels, kind).cpu())
    return found


def _batch(row: Row, run: RunToMerge) -> dict[str, Tensor]:
    return collate([row], run.tokenizer, task_info(run.recipe.task).reads)


def _compared(logits: Tensor, labels: Tensor | None, kind: RowKind) -> Tensor:
    """Return the logits that count: the pooled ones, or those of the last positions that predict a label."""
    if kind == "labelled":
        return logits.reshape(-1, logits.shape[-1])
    row = logits[0]
    if labels is not None and labels.ndim == 2 and labels.shape[1] == row.shape[0]:
        counts = (labels[0] != IGNORED).nonzero().flatten()
        positions = counts - 1 if kind == "text" else counts
        positions = positions[positions >= 0]
        if len(positions):
            return row[positions[-POSITIONS:].to(row.device)]
    return row[-POSITIONS:]


@torch.no_grad()
def round_once_more(model: nn.Module) -> None:
    """Move every weight by its dtype's epsilon, up or down by chance: no computation with it is surer than that."""
    draws = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.is_floating_point():
            rows = (*weight.shape[:1], *[1] * (weight.ndim - 1))
            step = torch.where(torch.rand(rows, generator=draws) < 0.5, 1.0, -1.0) * torch.finfo(weight.dtype).eps
            weight.addcmul_(weight, step.to(weight))


@contextmanager
def _computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute in the weights' dtype: autocast, because adapters and heads are float32 beside half-precision weights."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield


def free_memory() -> None:
    """Release the memory of the last model before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
