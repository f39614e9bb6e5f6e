"""Compare what determines a run's result with what its checkpoint recorded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from peftcli import __version__
from peftcli.assembly.outline import Outline
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_fingerprint import row_fingerprint
from peftcli.data.rows.row_set import RowSet
from peftcli.data.store.cache_key import tokenizer_fingerprint
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.inference.text_inputs import template_fingerprint
from peftcli.installed_versions import installed_versions
from peftcli.models.load.load_model import base_fingerprint
from peftcli.record.run_inputs import RunInputs, differences
from peftcli.record.train_state import TrainState
from peftcli.shown_text import all_of
from peftcli.training.watch.reporting import Reporter


def inputs_before_weights(
    known: Outline, data: PreparedData, validation: dict[str, RowSet], world: World, step_rows: int
) -> RunInputs:
    """Return what can be recorded of a run's inputs before weights load.

    The base is among them where its files are here already; a model of the hub is recorded once it is loaded.

    Args:
        step_rows: rows of a step, over all processes.
    """
    rows = {name: row_fingerprint(part) for name, part in validation.items()}
    return RunInputs(
        train_rows=row_fingerprint(data.train),
        train_count=len(data.train),
        validation_rows={name: found for name, found in rows.items() if found is not None},
        contents=data.contents,
        tokenizer=tokenizer_fingerprint(known.tokenizer),
        template=template_fingerprint(data.chat_template),
        base=base_fingerprint(known.spec),
        step_rows=step_rows,
        processes=world.size,
        device=device_name(world.device),
        versions={"peftcli": __version__, "torch": torch.__version__}
        | installed_versions("transformers", "tokenizers"),
    )


def device_name(device: torch.device) -> str:
    """Return what a device is: its kind, and which GPU."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def compare_inputs(now: RunInputs, state: TrainState, reporter: Reporter) -> None:
    """Compare a run's inputs with those that its state recorded, and record the ones that are known now.

    Args:
        now: the inputs that are known so far.

    Raises:
        UserError: what decides the result changed; names each.
    """
    then = RunInputs.from_dict(state.inputs)
    found = differences(then, now)
    if found.decisive:
        also = f"; changed as well: {', '.join(found.possible)}" if found.possible else ""
        back = "put back what changed"
        if _processes_differ(then, now):
            back += f" (--num-processes {then.processes})"
        raise UserError(
            f"{all_of(found.decisive)} changed since this run was stopped{also}",
            suggestion=f"{back}, or start again with --overwrite; to keep what was learnt, train into another "
            "output_dir with method.init_from",
        )
    if found.possible:
        reporter.note(f"{all_of(found.possible)} changed since this run was stopped: results can differ a little")
    if then.contents is not None and now.contents is not None and now.train_rows is None:
        reporter.note(_of_stream(now.contents))
    state.inputs = {**(state.inputs or {}), **now.as_dict()}


def _processes_differ(then: RunInputs, now: RunInputs) -> bool:
    return None not in (then.processes, now.processes) and then.processes != now.processes


def _of_stream(contents: Mapping[str, str]) -> str:
    if contents:
        return "the rows of a stream are not compared with those before; the sizes and samples of its files are"
    return "the rows of this stream are not compared with those before: it is not on this disk"
