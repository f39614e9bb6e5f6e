"""Read an adapter directory: ours, or one of a library that needs no base model. Nothing may be missing or extra."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peftcli.adapters.adapter_files import CONFIG, SIDECAR, WEIGHTS, read_json, read_tensors
from peftcli.adapters.format import OWN_LAYOUT, OWN_TYPE, SavedAdapter
from peftcli.adapters.label_names import with_label_names
from peftcli.adapters.library_table import LIBRARIES, library_of
from peftcli.adapters.sidecar import read_adapter_record
from peftcli.deliverables.checksums import refuse_changed_files
from peftcli.errors import Problem, UserError, about
from peftcli.protocol.registry import MethodRegistry, registry
from peftcli.recipe.stored_recipe import refuse_unfinished


def load_adapter(directory: Path | str, *, methods: MethodRegistry = registry) -> SavedAdapter:
    """Read an adapter.

    Args:
        directory: a run's `adapter/`, an exported one, or one that another library saved.
        methods: where the method's parameters are found.

    Raises:
        UserError: a file is missing, damaged, of a later version, or of a kind that cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no adapter directory {directory}")
    if not (directory / SIDECAR).is_file():
        config = directory / CONFIG
        if config.is_file() and read_json(config).get("peft_type") == OWN_TYPE:
            raise UserError(f"{directory / SIDECAR} is missing: the adapter's parameters are in it")
        library = library_of(directory)
        with about(directory):
            return with_label_names(library.read(directory, None), directory)
    record = read_adapter_record(directory, methods)
    tensors = read_tensors(directory / WEIGHTS, recorded=WEIGHTS in record.digests)
    refuse_changed_files(directory, [WEIGHTS], record.digests, directory / SIDECAR)
    layouts = {known.run_layout.name: known.run_layout for known in LIBRARIES.values() if known.run_layout is not None}
    params, meta = record.params, record.meta
    if record.layout not in (*layouts, OWN_LAYOUT):
        known = ", ".join(map(str, (*layouts, OWN_LAYOUT)))
        reason = f"{record.layout!r:.60} is no layout of tensors that this version reads"
        raise UserError(Problem(reason, str(directory / SIDECAR), key="layout", suggestion=f"known are {known}"))
    layout = layouts.get(record.layout)
    try:
        state = tensors if layout is None else layout.state(directory, tensors, params, meta)
    except UserError as error:
        wrong = f"{directory}: its {WEIGHTS} is not what {SIDECAR} and {CONFIG} describe"
        found = [p if p.file else replace(p, message=f"{wrong}: {p.message}") for p in error.problems]
        raise UserError(found) from None
    return SavedAdapter(params, state, meta, recorded=WEIGHTS in record.digests)


def run_adapter(run: Path) -> Path:
    """Return the adapter directory of a run.

    Raises:
        UserError: there is none yet, or it is that of before the run was continued.
    """
    refuse_unfinished(run)
    directory = run / "adapter"
    if not directory.is_dir():
        raise UserError(
            f"{run} holds no adapter yet",
            suggestion="finish it with `peft train RECIPE --resume`, or use --checkpoint last",
        )
    return directory
