"""Verify a merged model against base + adapter, and put the numbers into the report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from peftcli.data.rows.row_set import Row
from peftcli.distributed.processes import World
from peftcli.errors import VerificationFailed
from peftcli.merging.carried_effect import CarriedEffect
from peftcli.merging.check_use import Usage, use_here
from peftcli.merging.compare_outputs import (
    TIMES_ROUNDING,
    Comparison,
    Reference,
    allowing_rounding,
    coarsest,
    compare,
    compute_dtype,
    free_memory,
    open_merged,
    outputs,
    reference_outputs,
    round_once_more,
    sample_rows,
)
from peftcli.merging.merge_plan import MergePlan
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.module_effects import LostChanges, lost_changes
from peftcli.merging.run_to_merge import RunToMerge, is_quantised
from peftcli.models.load.dtypes import dtype_name
from peftcli.models.stored_quantised import becomes_plain
from peftcli.protocol.method import MergeRule
from peftcli.recipe.schema import ModelSpec

LOUD_ROUNDING = 0.3
"""Rounding that is told, as a share of the adapter's own effect: half-precision merges wipe out small adapters."""


def verify_merge(
    directory: Path,
    run: RunToMerge,
    config: Any,
    plan: MergePlan,
    report: MergeReport,
    world: World,
    requantise_in: int | None = None,
) -> Usage:
    """Compare the merged model with base + adapter, and write the numbers into the report.

    Args:
        directory: of the merged model's weights.
        run: the run.
        config: of the merged model.
        plan: of its weights.
        report: filled in.
        world: the processes that share the rows; each loads both models.
        requantise_in: quantise the model to 4 bits afterwards, in files of this many bytes.

    Returns:
        What the merged model answers, for `check_use` when all files are written.

    Raises:
        VerificationFailed: they differ by more than the tolerance.
    """
    device = world.device
    rows = world.main_first(lambda: sample_rows(run))
    dtype = plan.dtype
    computed = compute_dtype(dtype, device)
    for part in run.parts:
        check_rules(part, rows, world, computed)
    reference = reference_outputs(run, run.spec, rows, world, computed)
    free_memory()
    if run.adapter is not None and computed == torch.float32 != dtype:
        check_rules(run, rows, world, computed, reference)  # before rounding hides what a module's change should be
    model = open_merged(directory, run, config, device, computed)
    merged = outputs(model, rows, run, world, computed)
    usage = use_here(model, rows, run, reference.stops, directory)
    coarse = coarsest(dtype, computed)
    result = compare(reference.adapted, merged, coarse, several=run.of_several_labels)
    result = allowing_rounding(result, coarse, merged, partial(_rounded_outputs, model, rows, run, world))
    lost = LostChanges() if reference.modules is None else lost_changes(reference.modules, model, plan.outputs)
    del model
    free_memory()
    report.rows = len(rows)
    effect = reference.effect_in(merged)
    judge(result, effect, report, lost)
    packed = run.stored is not None and not becomes_plain(run.stored)
    if (is_quantised(run.recipe) or packed) and run.combined is None:
        trained = reference_outputs(run, _as_trained(run), rows, world, None)
        found = compare(trained.adapted, merged, torch.float32, several=run.of_several_labels)
        report.quantization_agreement = found.agreement
        free_memory()
    if requantise_in is not None and world.is_main:
        from peftcli.merging.requantise import requantise  # bitsandbytes takes a second to import

        cost = requantise(directory, run, config, rows, reference.adapted, device, requantise_in)
        _report_cost(cost, effect, report)
    return usage


def check_rules(
    run: RunToMerge, rows: list[Row], world: World, dtype: torch.dtype, live: Reference | None = None
) -> None:
    """Compare base + adapter with the base that has the adapter's rules folded in, both in memory.

    Args:
        run: with an adapter.
        rows: of a run's data.
        world: the processes that share the rows.
        dtype: of the base's weights.
        live: what base + adapter gives, if it is known.

    Raises:
        VerificationFailed: they differ by more than the tolerance.
    """
    result, _ = compare_with_rules(run, run.rules(), rows, world, dtype, live)
    if not result.within:
        raise VerificationFailed(
            f"the weight change that was computed from {run.directory} differs from its adapter by "
            f"{result.max_abs_diff:.3g} at most (tolerance {result.tolerance:.3g})\n    {_remedy(dtype_name(dtype))}"
        )


def compare_with_rules(
    run: RunToMerge,
    rules: dict[str, MergeRule],
    rows: list[Row],
    world: World,
    dtype: torch.dtype,
    live: Reference | None = None,
) -> tuple[Comparison, CarriedEffect | None]:
    """Compare base + adapter with the base that has rules folded in, one model in memory after the other.

    Args: as those of `check_rules`.

    Returns:
        The comparison, and what of the adapter's effect the folded rules have.
    """
    live = live or reference_outputs(run, run.spec, rows, world, dtype)
    free_memory()
    combined = replace(run, combined=rules)
    folded = reference_outputs(combined, run.spec, rows, world, dtype)
    free_memory()
    result = compare(live.adapted, folded.adapted, dtype)

    def rounded() -> Tensor:
        return reference_outputs(combined, run.spec, rows, world, dtype, rounded=True).adapted

    result = allowing_rounding(result, dtype, folded.adapted, rounded)
    free_memory()
    return result, live.effect_in(folded.adapted)


def _rounded_outputs(model: PreTrainedModel, rows: list[Row], run: RunToMerge, world: World) -> Tensor:
    """Return the outputs of a float32 model whose weights are rounded once more; it is of no other use then."""
    round_once_more(model)
    return outputs(model, rows, run, world, torch.float32)


def judge(
    result: Comparison, effect: CarriedEffect | None, report: MergeReport, lost: LostChanges | None = None
) -> None:
    """Write a comparison into the report.

    Args:
        result: of the merged model with base + adapter.
        effect: what of the adapter's effect the merged model has; None for a complete model.
        report: filled in.
        lost: projections without the adapter's change, where they were looked at.

    Raises:
        VerificationFailed: they differ by more than the tolerance, or the merged model or a projection of it has not
            the adapter's effect.
    """
    lost = lost or LostChanges()
    report.max_abs_diff, report.mean_abs_diff = result.max_abs_diff, result.mean_abs_diff
    report.tolerance, report.agreement = result.tolerance, result.agreement
    if effect is not None:
        report.adapter_effect, report.carried = effect.size, effect.carried
    if not result.within:
        raise VerificationFailed(
            f"the merged model differs from base + adapter by {result.max_abs_diff:.3g} at most and "
            f"{result.mean_abs_diff:.3g} on average (tolerance {result.tolerance:.3g}); {report.output} was not "
            f"written\n    {_remedy(report.dtype)}"
        )
    _refuse_wrong(lost, report)
    report.verified = _shows_the_effect(effect, result.rounding or 0.0, report, lost)
    if result.rounding is not None:
        report.notes.append(
            f"this model amplifies rounding errors: its outputs changed by {result.rounding:.3g} at most when every "
            f"weight was rounded once more; the comparison allows {TIMES_ROUNDING:g} times that"
        )
    share = result.mean_abs_diff / effect.size if effect and effect.size else 0.0
    if share > LOUD_ROUNDING and report.dtype != "float32":
        report.notes.append(
            f"rounding to {report.dtype} changes the outputs by {share:.0%} of the adapter's own effect; "
            "--dtype float32 avoids that"
        )


def _refuse_wrong(lost: LostChanges, report: MergeReport) -> None:
    """Refuse a merge of which a projection has not its change; note those from which rounding took it.

    Raises:
        VerificationFailed: rounding does not explain it.
    """
    if lost.wrong:
        path, share = next(iter(lost.wrong.items()))
        more = f", and {len(lost.wrong) - 1} more are wrong" if len(lost.wrong) > 1 else ""
        raise VerificationFailed(
            f"{path} of the merged model has {_percent(share)} of the adapter's change{more}, which rounding to "
            f"{report.dtype} does not explain; {report.output} was not written\n    keep the adapter beside its base, "
            "and report this"
        )
    if lost.rounded:
        path, share = next(iter(lost.rounded.items()))
        report.notes.append(
            f"rounding to {report.dtype} took most of the adapter's change from {len(lost.rounded)} of {lost.compared} "
            f"projections ({path} has {_percent(share)} of it); --dtype float32 keeps it"
        )


def _shows_the_effect(effect: CarriedEffect | None, rounding: float, report: MergeReport, lost: LostChanges) -> bool:
    """Return whether a merged model within the tolerance is verified; note it where the outputs show no effect.

    Args:
        effect: what of the adapter's effect the merged model has.
        rounding: what rounding every weight once more changed at most, in a model that amplifies it.
        report: of the merge.
        lost: projections without the adapter's change.

    Raises:
        VerificationFailed: the merged model has another effect than the adapter: next to none, or twice as much.
    """
    if effect is None or (effect.carried is not None and not effect.lost):
        return True
    if effect.carried is None or effect.silent or effect.size <= rounding:
        exact = report.dtype == "float32"
        report.notes.append(
            f"{'' if exact else 'not verified: '}the adapter changes the compared outputs by {effect.size:.3g} on "
            "average, which is no more than rounding, so they cannot tell the merged model from the base"
        )
        return exact  # equal to all digits; the tolerance of half precision hides more than nothing
    why = (
        f": rounding to {report.dtype} took most of the changes of {len(lost.rounded)} of {lost.compared} projections"
        if lost.rounded
        else ""
    )
    raise VerificationFailed(
        f"the merged model has {_percent(effect.carried)} of the adapter's effect on the outputs, which is "
        f"{effect.size:.3g} on average and less than the tolerance{why}; {report.output} was "
        f"not written\n    {_remedy(report.dtype)}"
    )


def _percent(share: float) -> str:
    return f"{round(share, 2) + 0.0:.0%}"  # no -0%


def _remedy(dtype: str) -> str:
    keep = "keep the adapter beside its base, and report this: more than rounding separates them"
    return keep if dtype == "float32" else "merge with --dtype float32, or keep the adapter beside its base"


def _as_trained(run: RunToMerge) -> ModelSpec:
    spec = run.recipe.model
    if spec.load_in_8bit or spec.load_in_4bit or run.stored is not None:
        return spec
    return spec.model_copy(update={"load_in_4bit": True})


def _report_cost(cost: Comparison, effect: CarriedEffect | None, report: MergeReport) -> None:
    """Write what quantising again changed into the report."""
    report.requantized = {
        "max_abs_diff": cost.max_abs_diff,
        "mean_abs_diff": cost.mean_abs_diff,
        "agreement": cost.agreement,
    }
    difference = cost.mean_abs_diff
    share = f", {difference / effect.size:.0%} of the adapter's own effect" if effect and effect.size else ""
    report.notes.append(f"quantising again changed the outputs by {difference:.3g} on average{share}")
