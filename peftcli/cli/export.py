"""`peft export RUN -o DIR`: write a run's adapter or its merged model for another library or a server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.adapters.library import PLAIN_LORA
from peftcli.adapters.library_table import LIBRARIES
from peftcli.console.options import CheckpointName, Json, Quiet, RunPath, TrustRemoteCode, note
from peftcli.console.progress_bar import with_progress
from peftcli.console.standard_input import called
from peftcli.console.terminal import say
from peftcli.errors import UserError
from peftcli.process_state import large_imports
from peftcli.serving.server_targets import DEFAULT_TYPE, GGUF, GGUF_LORA, GGUF_TYPES, OLLAMA, SERVER_TARGETS, gguf_type
from peftcli.suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from peftcli.adapters.transfer import Transfer
    from peftcli.merging.low_rank.export_lora import LoraExport
    from peftcli.serving.server_export import ServerExport

_TARGETS = (*LIBRARIES, PLAIN_LORA, *SERVER_TARGETS)
_CALLED = {
    "llama.cpp": GGUF,
    "llamacpp": GGUF,
    "llama-cpp": GGUF,
    "peft": "hf-peft",
    "hf": "hf-peft",
    "adapters": "adapterhub",
}
"""What people call a target, and its name here."""
_INSTEAD = {name: text for library in LIBRARIES.values() for name, text in library.instead.items()}

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help=f"Directory to write, or with --to {GGUF} and {GGUF_LORA} a file X.gguf; must not hold anything yet.",
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar=f"<{'|'.join(_TARGETS)}>",
        help=f"The library to write for: {', or '.join(library.files for library in LIBRARIES.values())}; "
        f"{PLAIN_LORA}: the nearest plain LoRA of any adapter that merges; "
        f"{'; '.join(f'{name}: {text}' for name, text in SERVER_TARGETS.items())}.",
        autocompletion=lambda: list(_TARGETS),
    ),
]
Instead = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar=f"<{'|'.join(_INSTEAD)}>",
        help=" ".join(_INSTEAD.values()),
        autocompletion=lambda: list(_INSTEAD),
        show_default=False,
    ),
]
Rank = Annotated[
    int | None, typer.Option("--rank", metavar="R", min=1, help=f"Rank of --to {PLAIN_LORA}.", show_default=False)
]
Keep = Annotated[
    float | None,
    typer.Option(
        "--keep",
        metavar="SHARE",
        help=f"Instead of --rank: the smallest rank at which --to {PLAIN_LORA} keeps this share of each change's "
        "squared norm, such as 0.95.",
        show_default=False,
    ),
]
LeaveOut = Annotated[
    bool,
    typer.Option(
        "--leave-out", help=f"--to {PLAIN_LORA}: leave out changes that no LoRA can hold, such as biases and norms."
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure", help=f"--to {PLAIN_LORA}: evaluate on the validation rows before and after."
    ),
]
GgufType = Annotated[
    str | None,
    typer.Option(
        "--type",
        metavar=f"<{'|'.join(GGUF_TYPES)}>",
        help="Type of the matrices in a GGUF file. The default is f16 for a model, f32 for an adapter.",
        autocompletion=lambda: list(GGUF_TYPES),
        show_default=False,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="--to ollama: write the adapter for this model (Ollama's name, or a GGUF file), not the merged model.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="The base model, if it is no longer where the run found it."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export", short_help="Write a run for another library or a server.")(with_progress(export))


def export(
    run: RunPath,
    output: Output,
    to: To = "hf-peft",
    instead: Instead = None,
    rank: Rank = None,
    keep: Keep = None,
    leave_out: LeaveOut = False,
    measure: Measure = True,
    kind: GgufType = None,
    adapter_on: From = None,
    base: Base = None,
    checkpoint: CheckpointName = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a run's adapter or merged model for another library or for a server.

    Example: peft export runs/lora -o lora-for-peft --to hf-peft
    """
    if to not in _TARGETS:
        meant = [_CALLED[to.lower()]] if to.lower() in _CALLED else nearest(to, _TARGETS)
        choice = did_you_mean(meant, f"choose one of: {', '.join(_TARGETS)}")
        raise UserError(f"--to {to}: there is no such library or server", suggestion=choice)
    if instead is not None and to not in LIBRARIES:
        raise UserError(f"--as {instead} does not go with --to {to}", suggestion="leave --as out")
    if kind is not None and to not in DEFAULT_TYPE:
        raise UserError(f"--type is for --to {', '.join(DEFAULT_TYPE)}", suggestion="leave --type out")
    if adapter_on is not None and to != OLLAMA:
        raise UserError(f"--from is for --to {OLLAMA}, not for --to {to}", suggestion="leave --from out")
    of_lora = {"--rank": rank, "--keep": keep, "--leave-out": leave_out, "--no-measure": not measure}
    if to == PLAIN_LORA:
        from peftcli.merging.low_rank.export_lora import export_lora
        from peftcli.merging.low_rank.plain_lora import Wanted

        told = (lambda _text: None) if quiet else note
        wanted = Wanted(rank, keep, leave_out)
        lora = export_lora(run, output, wanted, base, checkpoint, trust_remote_code, measure, told)
        _show(lora, as_json, quiet)
        if not as_json:
            _print_loss(lora)
    elif to in SERVER_TARGETS:
        _refuse_for_other(to, of_lora)
        done = _export_for_server(run, output, to, kind, adapter_on, base, checkpoint, trust_remote_code, quiet)
        _show_server(done, as_json, quiet)
    else:
        _refuse_for_other(to, of_lora | {"--trust-remote-code": trust_remote_code})
        _show(_export_for_library(run, output, to, instead, base, checkpoint), as_json, quiet)


def _show(done: Transfer | LoraExport, as_json: bool, quiet: bool) -> None:
    """Print notes, and what was written."""
    from peftcli.console.output import print_json

    for text in [] if quiet else done.notes:
        note(text)
    if as_json:
        print_json(done.as_dict())
        return
    kind = "as a plain LoRA" if done.kind == PLAIN_LORA else f"in the format of {done.kind}"
    say(f"{done.output}: {done.method} for {done.base}, {done.numbers:,} numbers, {kind}", result=True)


def _refuse_for_other(to: str, options: Mapping[str, object]) -> None:
    """Refuse options of a plain LoRA where the adapter is written as it is."""
    for option, value in options.items():
        if value is not None and value is not False:  # 0 is given, too
            raise UserError(
                f"{option} is for --to {PLAIN_LORA}, not for --to {to}", suggestion=f"add --to {PLAIN_LORA}"
            )


def _export_for_server(
    run: Path,
    output: Path,
    to: str,
    kind: str | None,
    adapter_on: str | None,
    base: str | None,
    checkpoint: str | None,
    trust_code: bool,
    quiet: bool,
) -> ServerExport:
    if to in DEFAULT_TYPE:
        kind = gguf_type(GGUF_LORA if adapter_on else to, kind)

    with large_imports():
        from peftcli.serving.asked_export import Asked
        from peftcli.serving.export_to_server import export_to_server

    told = (lambda _text: None) if quiet else note
    return export_to_server(to, Asked(run, output, base, checkpoint, trust_code, kind or "", adapter_on, told))


def _show_server(done: ServerExport, as_json: bool, quiet: bool) -> None:
    """Print notes, what was written, and what to type next."""
    from peftcli.console.output import print_json
    from peftcli.record.shown_numbers import byte_size

    for text in [] if quiet else done.notes:
        note(text)
    if as_json:
        print_json(done.as_dict())
        return
    kind = f" in {done.type}" if done.type else ""
    files = ", ".join(done.files) if Path(done.output).is_dir() else "a GGUF file"
    say(f"{done.output}: {files}, {byte_size(done.bytes)}, {done.tensors} tensors{kind}", result=True)
    if done.commands:
        print("next", *(f"  {command}" for command in done.commands), sep="\n")


def _export_for_library(
    run: Path, output: Path, to: str, instead: str | None, base: str | None, checkpoint: str | None
) -> Transfer:
    from peftcli.adapters.transfer import export_run
    from peftcli.names import NAMES
    from peftcli.recipe.stored_recipe import load_stored_recipe, stored_recipe
    from peftcli.record.checkpoint_adapter import adapter_directory

    notes: tuple[str, ...] = ()
    with ExitStack() as stack:
        if checkpoint is not None:
            recipe = load_stored_recipe(stored_recipe(run), NAMES).recipe
            adapter, notes = stack.enter_context(adapter_directory(run, recipe, checkpoint))
            stack.enter_context(called(str(adapter), f"{run} ({checkpoint})"))
            run = adapter
        done = export_run(run, output, to=to, instead=instead, base=base)
    return replace(done, notes=(*notes, *done.notes))


def _print_loss(done: LoraExport) -> None:
    """Print what a plain LoRA loses of the adapter."""
    from peftcli.console.output import print_table, result_console, table
    from peftcli.record.shown_numbers import metric

    say(
        f"a LoRA of rank {done.rank} at {done.matrices} modules; it keeps {done.kept:.2%} of the change's squared "
        f"norm, at least {done.least_kept:.2%} ({done.least_module})",
        result=True,
    )
    if done.before is None or done.after is None:
        print("not measured")
        return
    after = done.after
    rows = [
        [name, metric(name, value), metric(name, after[name])]
        for name, value in done.before.items()
        if not isinstance(value, dict | list)
    ]
    print_table(result_console(), table(["metric", "adapter", "LoRA"], rows, numeric=(1, 2)))
