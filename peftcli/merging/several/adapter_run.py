"""Several runs as one adapter in a run directory of its own: to go on training from, to export, to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from peftcli.adapters.adapter_files import WEIGHTS
from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import check_free, write_run
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.distributed.devices import usable_device
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.merging.compare_outputs import sample_rows
from peftcli.merging.low_rank.plain_lora import Wanted, plain_lora, plan_lora
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.merge_run import base_tensors
from peftcli.merging.run_to_merge import RunToMerge, open_run_to_merge
from peftcli.merging.several.combination import Combination
from peftcli.merging.several.combine_runs import combine_runs
from peftcli.merging.several.combine_weights import combine_weights
from peftcli.merging.verify_merge import compare_with_rules, judge
from peftcli.protocol.method import MergeRule
from peftcli.record.random_state import random_numbers_kept

Note = Callable[[str], None]


@random_numbers_kept()
def combine_to_adapter(
    runs: Sequence[Path],
    output: Path,
    how: Combination,
    *,
    base: str | None = None,
    trust_code: bool = False,
    checkpoint: str | None = None,
    verify: bool = True,
    note: Note = lambda _text: None,
) -> MergeReport:
    """Write the combination of several runs as a run with a LoRA adapter.

    Args:
        runs: their directories.
        output: of the new run; must not exist, or be empty.
        how: the combination.
        base, trust_code, checkpoint: as in `merge_run`.
        verify: read the adapter back, and compare base + adapter with the base that has its change folded in.
        note: receives what the user should know while it runs.

    Raises:
        UserError: the runs cannot be combined, or the result is no LoRA.
        VerificationFailed: what was written does not agree with what it stands for.
    """
    check_free(output)
    opened = [open_run_to_merge(Path(run), base, trust_code, checkpoint) for run in runs]
    _refuse_what_quantisation_took(opened)
    made = combine_runs(opened, how)
    expected = _exact_rules(opened, how) if made.combined is None else None
    if made.combined is not None:
        made = _as_lora(made, how, note)
    saved = made.adapter
    assert saved is not None  # a LoRA by now
    report = _report(made, saved, output)
    rows = sample_rows(made) if verify else []

    def check(directory: Path) -> None:
        report.size = (directory / WEIGHTS).stat().st_size
        if not verify:
            return
        written = replace(made, adapter=load_adapter(directory))
        world = World(usable_device(made.recipe.training.device))
        result, effect = compare_with_rules(written, expected or made.rules(), rows, world, torch.float32)
        report.rows = len(rows)
        judge(result, effect, report)

    where = {"name_or_path": made.spec.name_or_path, "revision": made.spec.revision}
    leaving = leaving_model(made.spec, made.recipe.task, made.tokenizer, made.texts)
    write_run(
        output,
        saved,
        trust_code=made.spec.trust_remote_code,
        spec=made.recipe.model.model_copy(update=where),
        leaving=leaving,
        check=check,
    )
    return report


def _refuse_what_quantisation_took(runs: Sequence[RunToMerge]) -> None:
    """Refuse adapters that start from what quantisation takes from the base (LoftQ): what is combined is the change of
    the unquantised base, and the new run is on the quantised one.

    Raises:
        UserError: names the run.
    """
    for run in runs:
        needs = None if run.adapter is None else run.adapter.params.needs_quantised_base()
        if needs is not None:
            raise UserError(
                f"{run.directory} holds what quantisation took from its base ({needs[0]}), of which a combined adapter "
                "on the quantised base would have nothing",
                suggestion="leave --adapter out: the change is folded into the unquantised base",
            )


def _report(made: RunToMerge, saved: SavedAdapter, output: Path) -> MergeReport:
    """Return what will be written, still without sizes and verification."""
    return MergeReport(
        output=str(output),
        dtype="float32",
        method=made.method,
        changed=len(saved.meta.targets),
        tensors=len(saved.state),
        size=0,
        notes=list(made.notes),
        adapter=True,
    )


def _exact_rules(runs: Sequence[RunToMerge], how: Combination) -> dict[str, MergeRule] | None:
    """Return the rules of the exact sum, made from the runs' own adapters, where the combination is that."""
    if how.type not in (None, "cat") or how.rank is not None:
        return None
    return combine_weights(runs, replace(how, type="linear")).combined


def _as_lora(made: RunToMerge, how: Combination, note: Note) -> RunToMerge:
    """Return a combination of changes that was cut to a rank as a run with a LoRA.

    Raises:
        UserError: it was not cut, or it changes more than matrices.
    """
    if how.rank is None:
        raise UserError(
            "the combined change of adapters other than LoRA has full rank, and --adapter writes a LoRA",
            suggestion="cut it with a type that ends in svd and --rank 16, or leave --adapter out",
        )
    return plain_lora(plan_lora(made, base_tensors(made, note), Wanted(rank=how.rank))).run
