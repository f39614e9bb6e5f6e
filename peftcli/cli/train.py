"""`peft train RECIPE [key=value ...]`: train an adapter from a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.options import Json, Overrides, Quiet, RecipePath, TrustRemoteCode, refuse_nothing
from peftcli.errors import Stopped, UserError
from peftcli.process_state import large_imports, quiet_profiler

if TYPE_CHECKING:
    from peftcli.analysis.estimate.memory_parts import Estimate
    from peftcli.console.display import RunDisplay
    from peftcli.recipe.load_recipe import LoadedRecipe
    from peftcli.record.run_summary import Summary

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue this run from its last checkpoint; a finished run needs more epochs."),
]

MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        metavar="N",
        min=0,
        help="How often to restart the processes from the last checkpoint after a crash.",
    ),
]

NoLock = Annotated[
    bool,
    typer.Option("--no-lock", help="Train without a lock on the output directory; for file systems without locks."),
]


Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="DIR", help="Directory of the run, instead of output_dir.")
]

NumProcesses = Annotated[
    int | None,
    typer.Option("--num-processes", metavar="N", min=1, help="Processes on this machine, each on its own device."),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output directory.")]

Profile = Annotated[
    bool, typer.Option("--profile", help="Profile a few steps: write a trace, and show where time and memory went.")
]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Do everything up to the first step, estimate memory and time, and write no run."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("train", short_help="Train an adapter from a recipe.")(train)


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = None,
    max_restarts: MaxRestarts = 0,
    profile: Profile = False,
    no_lock: NoLock = False,
    dry_run: DryRun = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train an adapter from a recipe and write it to a run directory.

    Example: peft train configs/lora.yaml method.r=16 training.num_train_epochs=2
    """
    if output is not None:
        refuse_nothing(output, "--output")
    if dry_run and (resume or profile):
        raise UserError("--dry-run takes no step", suggestion="leave out --resume and --profile")
    changes = [*(overrides or []), *([f"output_dir={json.dumps(output)}"] if output else [])]
    from peftcli.assembly.recipe_to_train import recipe_to_train, set_allocator

    loaded, notes = recipe_to_train(recipe, changes, trust_code=trust_remote_code)
    if profile:
        quiet_profiler()

    from peftcli.distributed.launching import is_launched, is_main_process, is_restarted

    if num_processes is not None and num_processes > 1 and not is_launched():
        flags = {"--resume": resume, "--overwrite": overwrite, "--profile": profile, "--quiet": quiet}
        flags |= {"--no-lock": no_lock, "--json": as_json, "--trust-remote-code": trust_remote_code}
        flags["--dry-run"] = dry_run
        typed = ["train", str(recipe), *changes, *(flag for flag, on in flags.items() if on)]
        raise typer.Exit(_start(loaded, typed, num_processes, max_restarts))
    resume = resume or (is_restarted() and not overwrite)

    from peftcli.console.display import RunDisplay
    from peftcli.console.output import print_json

    with RunDisplay(command=f"peft train {recipe}", quiet=quiet, results=not as_json) as display:
        run_training = _imported()
        set_allocator(loaded.recipe.training)
        for note in notes if is_main_process() else ():
            display.note(note)
        how = {"resume": resume, "overwrite": overwrite, "profile": profile, "lock": not no_lock}
        rehearsed = _rehearse(loaded, display, overwrite=overwrite) if dry_run else None
        done = rehearsed or run_training(loaded, reporter=display, **how)
    if as_json and is_main_process():
        print_json(done.as_dict())
    elif rehearsed is not None and is_main_process():
        _print_rehearsed(rehearsed)


def _imported() -> Callable[..., Summary]:
    """Return what trains: its import takes seconds, below the display's spinner."""
    try:
        with large_imports():
            from peftcli.training.run import train as run_training
    except KeyboardInterrupt:
        raise Stopped("stopped while loading, before anything was written; the same command starts again") from None
    return run_training


def _rehearse(loaded: LoadedRecipe, display: RunDisplay, *, overwrite: bool) -> Estimate:
    """Do everything up to the first step, and return what the run would take."""
    from peftcli.analysis.estimate.estimating import basis_of_rows, estimate
    from peftcli.training.run import rehearse

    found = rehearse(loaded, overwrite=overwrite, reporter=display)
    decided = {"training.gradient_checkpointing": found.recomputes}
    basis = basis_of_rows(loaded, found.tokenizer, found.anatomy, found.data)
    return estimate(basis, decided, processes=found.processes)


def _print_rehearsed(found: Estimate) -> None:
    from peftcli.console.estimate_view import print_estimate
    from peftcli.console.options import note

    for text in found.notes:
        note(text)
    print_estimate(found)
    note("nothing was trained, and no run was written: leave out --dry-run to train")


def _start(loaded: LoadedRecipe, arguments: list[str], processes: int, restarts: int) -> int:
    """Check everything and prepare the rows once, and train in several processes; return the exit code.

    Raises:
        UserError: something is wrong; or a crash could leave the run that was to be replaced, to be gone on with.
    """
    if restarts and "--overwrite" in arguments:
        raise UserError("--max-restarts continues a run, but --overwrite replaces it", suggestion="remove the old run")
    from peftcli.distributed.devices import check_devices, pick_device
    from peftcli.distributed.launching import launch_peft
    from peftcli.training.before_weights import prepare_once

    check_devices(pick_device(loaded.recipe.training.device), processes)
    prepare_once(loaded)
    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    return launch_peft(arguments, processes, restarts=restarts, again=again)
