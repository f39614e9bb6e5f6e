"""`peft export --to lora`: any adapter that merges as a plain LoRA for servers, and what that loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.label_names import write_label_names
from peftcli.adapters.library import PLAIN_LORA
from peftcli.adapters.library_table import library_named
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import check_free, text_notes
from peftcli.atomic import new_directory
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.deliverables.write_beside import write_beside_adapter
from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_found
from peftcli.inference.open_run import FoundRun, Opening, find_run
from peftcli.merging.low_rank.plain_lora import PlainLora, Wanted, plain_lora, plan_lora
from peftcli.merging.merge_run import base_tensors
from peftcli.merging.run_to_merge import RunToMerge, open_run_to_merge
from peftcli.shown_text import some_of
from peftcli.write_errors import OTHER_OUTPUT

Note = Callable[[str], None]
Metrics = dict[str, Any]
_SERVED = "hf-peft"
"""The library in whose format servers read a LoRA."""


@dataclass(frozen=True)
class LoraExport:
    """What was written, and what it lost.

    Args:
        output: the new directory.
        kind: `PLAIN_LORA`.
        method: of the run.
        task: as in a recipe.
        base: the base model's name.
        tensors, numbers: how many were written.
        rank: of the pairs; a smaller matrix has its shorter side.
        matrices: how many there are.
        kept: share of the squared norm of the changed matrices' change that the pairs keep.
        least_kept: the same of the matrix that keeps least.
        least_module: its module.
        left_out: parameters whose change was left out.
        before: the metrics of the run's own adapter on its validation rows; None where it was not measured.
        after: those of the LoRA as it was written, on the same base and rows.
        notes: what the user should know.
    """

    output: str
    kind: str
    method: str
    task: str
    base: str
    tensors: int
    numbers: int
    rank: int
    matrices: int
    kept: float
    least_kept: float
    least_module: str
    left_out: tuple[str, ...]
    before: Metrics | None
    after: Metrics | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def export_lora(
    run: Path,
    output: Path,
    wanted: Wanted,
    base: str | None = None,
    checkpoint: str | None = None,
    trust_code: bool = False,
    measure: bool = True,
    note: Note = lambda _text: None,
) -> LoraExport:
    """Write a run's adapter as the plain LoRA that is nearest to it, and measure what that loses.

    The base's files are read one tensor at a time; the base and the run are left as they are.

    Args:
        run: directory of a run.
        output: must not exist, or be empty.
        wanted: rank, or share to keep, and whether to leave out what no LoRA holds.
        base: name or path of the base, if it is no longer where the run found it.
        checkpoint: of this one, not of the finished run.
        trust_code: let the Python code that comes with the model run.
        measure: evaluate the run and the LoRA on the run's validation rows.
        note: receives what the user should know while it runs.

    Raises:
        UserError: the adapter does not merge, changes something else than matrices, or its data is gone.
    """
    check_free(output)
    opened = open_run_to_merge(run, base, trust_code, checkpoint)
    if opened.adapter is None:
        raise UserError(
            f"{run} holds a complete model, not an adapter", suggestion=f"{run / 'model'} loads in servers as it is"
        )
    if opened.adapter.meta.token_rows:
        raise UserError(
            f"{run} trained rows of single tokens, which a plain LoRA cannot hold",
            suggestion="fold the run into its base with peft merge, or export it as it is: --to hf-peft",
        )
    plan = plan_lora(opened, base_tensors(opened, note), wanted)
    found = _found(run, base, checkpoint, trust_code) if measure else None
    before = None if found is None else _measured(found, note)
    made = plain_lora(plan)
    saved = made.run.adapter
    assert saved is not None  # with_lora
    with new_directory(output, instead=OTHER_OUTPUT, replace=False) as partial:
        notes = library_named(_SERVED).write(saved, run, partial, base=base, instead=None)
        write_label_names(partial, saved.meta.labels)
        write_beside_adapter(partial, leaving_model(opened.spec, opened.recipe.task, opened.tokenizer, opened.texts))
        texts = text_notes({file.name for file in partial.iterdir()})
        after = None
        if found is not None and before is not None:
            after = _measured(replace(found, saved=load_adapter(partial)), lambda _text: None)
    said = (*made.run.notes, *notes, *texts, *_notes(made, measure=measure, measured=after is not None))
    return _report(output, opened, made, saved, (before, after), said)


def _report(
    output: Path,
    opened: RunToMerge,
    made: PlainLora,
    saved: SavedAdapter,
    metrics: tuple[Metrics | None, Metrics | None],
    notes: tuple[str, ...],
) -> LoraExport:
    """Return what was written.

    Args:
        output: the new directory.
        opened: the run.
        made, saved: its LoRA.
        metrics: before and after.
        notes: what the user should know.
    """
    return LoraExport(
        output=str(output),
        kind=PLAIN_LORA,
        method=opened.recipe.method.name,
        task=opened.recipe.task,
        base=opened.spec.name_or_path,
        tensors=len(saved.state),
        numbers=sum(tensor.numel() for tensor in saved.state.values()),
        rank=made.rank,
        matrices=made.matrices,
        kept=made.kept,
        least_kept=made.least_kept,
        least_module=made.least_module,
        left_out=made.left_out,
        before=metrics[0],
        after=metrics[1],
        notes=notes,
    )


def _found(run: Path, base: str | None, checkpoint: str | None, trust_code: bool) -> FoundRun:
    """Return the run as `peft eval` opens it, on the base that was named."""
    found = find_run(run, Opening(trust_code=trust_code, checkpoint=checkpoint))
    if base is None:
        return found
    return replace(found, spec=found.spec.model_copy(update={"name_or_path": base, "revision": None}))


def _measured(found: FoundRun, note: Note) -> Metrics | None:
    """Return the metrics on the run's validation rows, or None where it has none."""
    try:
        metrics = evaluate_found(found, note)
        return metrics and {name: value for name, value in metrics.items() if name != "eval_runtime"}
    except UserError as error:
        raise UserError(
            f"what the LoRA loses cannot be measured: {error.problems[0].message}",
            suggestion="run this where the run's data and base are, or export with --no-measure",
        ) from error


def _notes(made: PlainLora, *, measure: bool, measured: bool) -> list[str]:
    adapter = made.run.adapter
    assert adapter is not None  # with_lora
    notes = []
    if made.left_out:
        notes.append(f"left out, since a plain LoRA cannot hold it: the change of {some_of(made.left_out, 3)}")
    whole = (*adapter.meta.head, *adapter.meta.modules_to_save)
    if whole:
        notes.append(f"stored whole beside the LoRA: {', '.join(whole)}; some servers (vLLM) refuse such modules")
    if any(target.kind == "embedding" for target in adapter.meta.targets):
        notes.append("it changes an embedding table, which not every server takes")
    if measure and not measured:
        notes.append("the run has no validation rows, so what the LoRA loses was not measured")
    return notes
