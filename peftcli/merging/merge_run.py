"""Fold what a run trained into the base's weights, stream the result to disk, and verify it before it appears."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftcli.atomic import new_directory
from peftcli.errors import UserError, VerificationFailed
from peftcli.merging import verify as checks
from peftcli.merging.combine import combine
from peftcli.merging.companions import merged_config, write_companions, write_config
from peftcli.merging.merge_plan import Output, Plan, make_plan
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.merged_card import merged_card
from peftcli.merging.subject import Subject, is_quantised, open_subject, output_dtype
from peftcli.merging.tensor_writer import shard_names, shards, write_file, write_index
from peftcli.models.load.base_files import base_directory, stored_tensors
from peftcli.models.load.load_model import load_model
from peftcli.models.load.tensor_source import Source, held_tensors
from peftcli.recipe.schema import ModelSpec

Note = Callable[[str], None]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_OLD_BUFFERS = ("position_ids", "attn.bias", "masked_bias", "inv_freq")
"""Constants that older checkpoints hold; today's models make them."""
LOUD_ROUNDING = 0.3
"""Rounding that is told, as a share of the adapter's own effect: half-precision merges wipe out small adapters."""
_SPARE_BYTES = 64 * 2**20
"""Disk space beside the weights: tokenizer, card, the file system's own."""


def merge_run(
    run: Path,
    output: Path,
    *,
    dtype: str | None = None,
    base: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = True,
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
        max_shard_size: of a weight file, such as 5GB or 500MB.
        verify: compare with base + adapter on rows of the run's data.
        requantize: write the result in 4 bits, and say what that costs.
        note: receives what the user should know while it runs.

    Raises:
        UserError: the method does not merge, something is missing or does not fit, or the disk is too small.
        VerificationFailed: the merged model does not agree with base + adapter.
    """
    options = Options.of(output, dtype, max_shard_size, verify, requantize)
    return merge_subject(open_subject(Path(run), base), options, note)


def merge_runs(
    runs: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float],
    rank: int | None = None,
    dtype: str | None = None,
    base: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = True,
    note: Note = lambda _text: None,
) -> MergeReport:
    """Merge the weighted sum of several LoRA runs of one base.

    Args:
        runs: their directories.
        weights: one for each.
        rank: cut the summed change of every matrix to this rank; None keeps it exact.
        output, dtype, base, max_shard_size, verify, note: as for one run; it is verified against base + summed adapter.

    Raises:
        UserError: as for one run, or the runs cannot be summed.
        VerificationFailed: the merged model does not agree with base + adapter.
    """
    options = Options.of(output, dtype, max_shard_size, verify, requantize=False)
    return merge_subject(combine([open_subject(Path(run), base) for run in runs], weights, rank), options, note)


@dataclass(frozen=True)
class Options:
    """How the result is written: checked before anything is opened.

    Args:
        output: directory that does not exist yet.
        dtype: of the result, None for the base's own.
        limit: bytes of a weight file.
        verify, requantize: as in `merge_run`.
    """

    output: Path
    dtype: torch.dtype | None
    limit: int
    verify: bool
    requantize: bool

    @classmethod
    def of(cls, output: Path, dtype: str | None, max_shard_size: str, verify: bool, requantize: bool) -> Options:
        """Check what the user gave.

        Raises:
            UserError: a size or type that is none, or an output that exists.
        """
        refuse_existing(Path(output))
        return cls(Path(output), output_dtype(dtype), parse_size(max_shard_size), verify, requantize)


def merge_subject(subject: Subject, options: Options, note: Note) -> MergeReport:
    """Merge what was opened; see `merge_run`."""
    output = options.output
    for text in subject.notes:
        note(text)
    files, tensors = base_tensors(subject, note)
    plan = make_plan(subject.model, tensors, subject.rules(), options.dtype)
    refuse_small_disk(output, plan.size)
    report = MergeReport(
        output=str(output),
        dtype=str(plan.dtype).removeprefix("torch."),
        method=subject.recipe.method.name,
        changed=plan.changed,
        tensors=len(plan.outputs),
        size=plan.size,
        notes=[*subject.notes, *_plan_notes(plan)],
    )
    config = merged_config(subject, plan)
    with writing(output) as partial:
        write_weights(partial, plan.outputs, options.limit)
        write_companions(partial, subject, files)
        if options.verify or options.requantize:
            size = options.limit if options.requantize else None
            verify_merge(partial, subject, config, plan.dtype, report, size)
        card = merged_card(subject.recipe.model.name_or_path, subject.recipe.task, report)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if not options.requantize:  # it has written the quantised model's own config
            write_config(partial, config)
    return report


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """Yield a directory beside `output` that becomes it; what the file system refuses is the user's to solve."""
    try:
        with new_directory(output) as partial:
            yield partial
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror or error}", suggestion="choose another --output"
        ) from error


def write_weights(directory: Path, outputs: list[Output], limit: int) -> None:
    """Write the tensors to safetensors files of at most `limit` bytes, and an index if there are several."""
    by_name = {output.planned.name: output for output in outputs}
    groups = shards([output.planned for output in outputs], limit)
    files = shard_names(len(groups))
    for file, group in zip(files, groups, strict=True):
        write_file(directory / file, group, {planned.name: by_name[planned.name].pieces() for planned in group})
    if len(files) > 1:
        names = {planned.name: file for file, group in zip(files, groups, strict=True) for planned in group}
        write_index(directory, names, sum(output.planned.nbytes for output in outputs))


def verify_merge(
    directory: Path,
    subject: Subject,
    config: Any,
    dtype: torch.dtype,
    report: MergeReport,
    requantise_in: int | None = None,
) -> None:
    """Compare the merged model with base + adapter, and write the numbers into the report.

    Args:
        directory: of the merged model's weights.
        subject: the run.
        config: of the merged model.
        dtype: of its weights.
        report: filled in.
        requantise_in: quantise the model to 4 bits afterwards, in files of this many bytes.

    Raises:
        VerificationFailed: they differ by more than the tolerance.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = checks.sample_rows(subject)
    computed = checks.compute_dtype(dtype, device)
    reference = checks.reference_outputs(subject, subject.spec, rows, device, computed)
    checks.free_memory()
    merged = checks.merged_outputs(directory, subject, config, rows, device, computed)
    checks.free_memory()
    result = checks.compare(reference.adapted, merged, checks.coarsest(dtype, computed))
    report.rows = len(rows)
    report.max_abs_diff, report.mean_abs_diff = result.max_abs_diff, result.mean_abs_diff
    report.tolerance, report.agreement = result.tolerance, result.agreement
    report.adapter_effect = reference.effect
    if not result.within:
        raise VerificationFailed(
            f"the merged model differs from base + adapter by {result.max_abs_diff:.3g} at most and "
            f"{result.mean_abs_diff:.3g} on average (tolerance {result.tolerance:.3g}); {report.output} was not "
            "written\n    merge with --dtype float32, or keep the adapter"
        )
    report.verified = True
    share = result.mean_abs_diff / reference.effect if reference.effect else 0.0
    if share > LOUD_ROUNDING:
        report.notes.append(
            f"rounding to {report.dtype} changes the outputs by {share:.0%} of what the adapter does; "
            "--dtype float32 keeps it"
        )
    if is_quantised(subject.recipe):
        trained = checks.reference_outputs(subject, _as_trained(subject), rows, device, None)
        report.quantization_agreement = checks.compare(trained.adapted, merged, torch.float32).agreement
        checks.free_memory()
    if requantise_in is not None:
        from peftcli.merging.requantise import requantise  # bitsandbytes takes a second to import

        cost = requantise(directory, subject, config, rows, reference.adapted, device, requantise_in)
        report.requantized = {
            "max_abs_diff": cost.max_abs_diff,
            "mean_abs_diff": cost.mean_abs_diff,
            "agreement": cost.agreement,
        }
        report.notes.append(_cost_of_quantising(cost.mean_abs_diff, reference.effect))


def _as_trained(subject: Subject) -> ModelSpec:
    spec = subject.recipe.model
    if spec.load_in_8bit or spec.load_in_4bit:
        return spec
    return spec.model_copy(update={"load_in_4bit": True})


def _cost_of_quantising(difference: float, effect: float | None) -> str:
    share = f", {difference / effect:.0%} of what the adapter does" if effect else ""
    return f"quantising again changed the outputs by {difference:.3g} on average{share}"


def base_tensors(subject: Subject, note: Note) -> tuple[Path | None, dict[str, Source]]:
    """Return the directory of the base's files (None for a GGUF file) and its tensors."""
    if subject.source.kind != "gguf":
        files = base_directory(subject.source, subject.spec.revision)
        return files, stored_tensors(files)
    note("a GGUF base is dequantised in memory, and becomes float32 safetensors unless --dtype says otherwise")
    loaded = load_model(subject.spec, subject.recipe.task, labels=subject.labels, seed=subject.recipe.seed)
    return None, held_tensors(loaded.model.state_dict())


def _plan_notes(plan: Plan) -> list[str]:
    notes = []
    if plan.untied:
        notes.append(f"no longer tied, since only one of them changed: {', '.join(plan.untied)}")
    left_out = [name for name in plan.left_out if not name.endswith(_OLD_BUFFERS)]
    if left_out:
        shown = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        notes.append(f"left out, since this task's model has no such weights: {shown}")
    return notes


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 5GB, 500MB or 2GiB.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)\s*", text.upper())
    size = int(float(found.group(1)) * _UNITS[found.group(2) if found.group(2) != "B" else ""]) if found else 0
    if size <= 0:
        raise UserError(f"--max-shard-size {text!r} is no size", suggestion="write it as 5GB, 500MB or 2GiB")
    return size


def refuse_existing(output: Path) -> None:
    """Refuse an output that is there already.

    Raises:
        UserError: it exists.
    """
    if output.exists():
        raise UserError(f"{output} exists already", suggestion="choose another --output, or remove it first")


def refuse_small_disk(output: Path, size: int) -> None:
    """Refuse a disk that cannot hold the result.

    Raises:
        UserError: with what is needed and what is free.
    """
    place = output.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written to", suggestion="choose another --output")
    if free < size + _SPARE_BYTES:
        raise UserError(
            f"the merged model needs {(size + _SPARE_BYTES) / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free",
            suggestion="free some space, choose an --output on another disk, or a smaller --dtype",
        )
