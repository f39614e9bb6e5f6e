"""Fold what a run trained into the base's weights, stream the result to disk, and verify it before it appears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from peftcli.atomic import new_directory
from peftcli.data.chat.named_templates import choose_template
from peftcli.deliverables.check_files import check_files
from peftcli.deliverables.config_file import CONFIG, make_readable
from peftcli.deliverables.learnt_texts import PLAIN_TEXT, is_plain_text
from peftcli.deliverables.leaving_model import leaving_model
from peftcli.deliverables.write_beside import write_beside_weights, write_config
from peftcli.distributed.devices import usable_device
from peftcli.distributed.memory_errors import OTHER_MACHINE, memory_for
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.inference.open_run import trained_format
from peftcli.inference.reading_file import write_reading
from peftcli.layers.quantised.quantised_weights import make_plain
from peftcli.merging.check_use import check_use
from peftcli.merging.merge_options import MergeOptions, merge_options, refuse_small_disk
from peftcli.merging.merge_plan import MergedTensor, MergePlan, plan_merge
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.merged_card import merged_card
from peftcli.merging.merged_config import merged_config
from peftcli.merging.run_to_merge import RunToMerge, open_run_to_merge
from peftcli.merging.several.combination import Combination
from peftcli.merging.several.combine_runs import combine_runs
from peftcli.merging.tensor_writer import require_written, shard_names, shards, write_file, write_index
from peftcli.merging.verify_merge import verify_merge
from peftcli.models.load.dtypes import checkpoint_dtype, dtype_name
from peftcli.models.load.load_model import load_model
from peftcli.models.model_tasks import auto_name
from peftcli.models.weights.base_files import base_directory, stored_tensors
from peftcli.models.weights.tensor_source import Source, held_tensors
from peftcli.progress import stage
from peftcli.record.random_state import random_numbers_kept
from peftcli.record.run_directory import RunDirectory
from peftcli.shown_text import some_of
from peftcli.write_errors import OTHER_OUTPUT

Note = Callable[[str], None]

_OLD_BUFFERS = ("position_ids", "attn.bias", "masked_bias", "inv_freq")
"""Constants that older checkpoints hold; today's models make them."""


def merge_run(
    run: Path,
    output: Path,
    *,
    dtype: str | None = None,
    base: str | None = None,
    trust_code: bool = False,
    checkpoint: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = True,
    use_alone: bool = True,
    requantize: bool = False,
    note: Note = lambda _text: None,
) -> MergeReport:
    """Merge a run into a model of its own.

    The base's files are read and the result is written one tensor at a time; the base and the run are left as they are.
    The directory appears when everything is written and verified, or not at all.

    Args:
        run: directory that `peft train` left.
        output: of the merged model; must not exist.
        dtype: auto (the base's own), float32, bfloat16 or float16.
        base: name or path of the base, if it is no longer where the run found it.
        trust_code: let the Python code that comes with the model run.
        checkpoint: merge this one (`checkpoint_adapter`), not the result of the finished run.
        max_shard_size: of a weight file, such as 5GB or 500MB.
        verify: compare with base + adapter on rows of the run's data.
        use_alone: a part of that: use the result in a process with transformers alone, which loads it once more.
        requantize: write the result in 4 bits, and say what that costs.
        note: receives what the user should know while it runs.

    Raises:
        UserError: the method does not merge, something is missing or does not fit, or the disk is too small.
        VerificationFailed: the merged model does not agree with base + adapter.
    """
    options = merge_options(output, dtype, max_shard_size, verify=verify, use_alone=use_alone, requantize=requantize)
    return merge_opened(open_run_to_merge(Path(run), base, trust_code, checkpoint), options, note)


def merge_runs(
    runs: Sequence[Path],
    output: Path,
    *,
    how: Combination,
    dtype: str | None = None,
    base: str | None = None,
    trust_code: bool = False,
    checkpoint: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = True,
    use_alone: bool = True,
    note: Note = lambda _text: None,
) -> MergeReport:
    """Merge the combination of several runs of one base.

    Args:
        runs: their directories.
        how: weights, type and settings of the combination.
        output, dtype, base, trust_code, checkpoint, max_shard_size, verify, use_alone, note: as for one run; what it is
            verified against is base + combined adapter, or the base with the combined change of its weights in memory,
            after each run's own change was compared with its adapter.

    Raises:
        UserError: as for one run, or the runs cannot be combined.
        VerificationFailed: the merged model does not agree with that.
    """
    options = merge_options(output, dtype, max_shard_size, verify=verify, use_alone=use_alone)
    opened = [open_run_to_merge(Path(run), base, trust_code, checkpoint) for run in runs]
    return merge_opened(combine_runs(opened, how), options, note)


@random_numbers_kept()
@memory_for("while merging", f"--no-verify needs less, since it loads no model; or {OTHER_MACHINE}")
def merge_opened(run: RunToMerge, options: MergeOptions, note: Note) -> MergeReport:
    """Merge an opened run; see `merge_run`.

    Among several processes the main one writes, and all of them compute a share of what is compared.
    """
    if options.requantize and run.whole is not None:
        reason = f"{run.recipe.model.name_or_path} holds more than the text part that was trained, and stays in 16 bits"
        raise UserError(reason, suggestion="merge without --requantize")
    output, world = options.output, World(usable_device(run.recipe.training.device))
    world.wait()  # until all have seen that the output is free
    for text in run.notes:
        note(text)
    tensors = base_tensors(run, note)
    plan = plan_merge(run.model, tensors, run.rules(), options.dtype, whole=run.whole is not None)
    if world.is_main:
        refuse_small_disk(output, plan.size)
    report = MergeReport(
        output=str(output),
        dtype=dtype_name(plan.dtype),
        method=run.method or run.recipe.method.name,
        changed=plan.changed,
        tensors=len(plan.outputs),
        size=plan.size,
        notes=[*run.notes, *_plan_notes(plan), *_texts_note(run)],
    )
    leaving = leaving_model(run.spec, run.recipe.task, run.tokenizer, run.texts)
    config = merged_config(run, plan, leaving)
    if not world.is_main:
        if options.verify:
            verify_merge(Path(world.broadcast("")), run, config, plan, report, world)
        return report
    with new_directory(output, instead=OTHER_OUTPUT, replace=False) as partial:
        sums = write_weights(partial, plan.outputs, options.limit)
        report.notes += write_beside_weights(partial, leaving, run.model)
        if options.verify:
            require_written(partial, sums, output)
            check_files(partial, config, leaving)
            size = options.limit if options.requantize else None
            world.broadcast(str(partial))
            with stage("comparing with base + adapter"):
                usage = verify_merge(partial, run, config, plan, report, world, size)
        if options.requantize:
            report.size = sum(file.stat().st_size for file in partial.glob("*.safetensors"))
        auto = auto_name(config, run.recipe.task)
        card = merged_card(run.recipe.model.name_or_path, run.recipe.task, auto, report)
        write_reading(partial, run.recipe, trained_format(RunDirectory(run.directory)))
        (partial / "README.md").write_text(card, encoding="utf-8")
        if options.requantize:  # it has written the quantised model's own config
            make_readable(partial / CONFIG, config, leaving)
        else:
            write_config(partial, config, leaving)
            if options.use_alone:
                with stage("using the result without peftcli"):
                    check_use(usage)
    return report


def write_weights(directory: Path, outputs: list[MergedTensor], limit: int) -> dict[str, int]:
    """Write the tensors to safetensors files of at most `limit` bytes, and an index if there are several.

    Returns:
        For each file what `require_written` compares.
    """
    by_name = {output.planned.name: output for output in outputs}
    groups = shards([output.planned for output in outputs], limit)
    files = shard_names(len(groups))
    sums: dict[str, int] = {}
    with stage("merging", len(outputs), "tensors") as advance:
        for file, group in zip(files, groups, strict=True):
            pieces = {planned.name: _counted(by_name[planned.name].pieces(), advance) for planned in group}
            sums[file] = write_file(directory / file, group, pieces)
    if len(files) > 1:
        names = {planned.name: file for file, group in zip(files, groups, strict=True) for planned in group}
        write_index(directory, names, sum(output.planned.nbytes for output in outputs))
    return sums


def _counted(pieces: Iterable[Tensor], advance: Callable[[int], None]) -> Iterator[Tensor]:
    """Yield a tensor's pieces, and tell when there are no more."""
    yield from pieces
    advance(1)


def base_tensors(run: RunToMerge, note: Note) -> dict[str, Source]:
    """Return the base's tensors by their names in its files."""
    if run.source.kind != "gguf" and run.stored is None:
        return {**stored_tensors(base_directory(run.source, run.spec.revision))}
    spec = run.spec
    if run.stored is None:
        note("a GGUF base is dequantised in memory, and becomes float32 safetensors unless --dtype says otherwise")
    else:  # in the type of its other weights, whatever this device computes well
        written = checkpoint_dtype(run.model.config, run.source)
        written = torch.float32 if written == torch.float16 else written
        spec = spec.model_copy(update={"dtype": dtype_name(written)})
        note(f"the base is dequantised in memory, and becomes {dtype_name(written)} unless --dtype says otherwise")
    loaded = load_model(spec, run.recipe.task, labels=run.labels, seed=run.recipe.seed)
    make_plain(loaded.model, loaded.dtype)
    return held_tensors(loaded.model.state_dict())


def _texts_note(run: RunToMerge) -> list[str]:
    return [PLAIN_TEXT] if is_plain_text(run.recipe) and choose_template(None, run.tokenizer) is not None else []


def _plan_notes(plan: MergePlan) -> list[str]:
    notes = []
    if plan.untied:
        notes.append(f"no longer tied, since they changed differently: {some_of(plan.untied, 3)}")
    left_out = [name for name in plan.left_out if not name.endswith(_OLD_BUFFERS)]
    if left_out:
        notes.append(f"left out, since this task's model has no such weights: {some_of(left_out, 3)}")
    return notes
