"""`--num-processes N` of the commands that use a run: the same command, started several times on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from peftcli.console.standard_input import NAMES
from peftcli.errors import UserError

NumProcesses = Annotated[
    int | None,
    typer.Option(
        "--num-processes",
        metavar="N",
        min=1,
        help="Processes on this machine, each on its own device; they share the rows.",
        show_default=False,
    ),
]


def share_among(processes: int | None, command: str, names: Sequence[object], options: Mapping[str, object]) -> None:
    """Run a command in several processes and end with their exit code; return where this process does the work itself.

    Args:
        processes: to start; None, or inside a launcher that has started them, none.
        command: its name.
        names: its arguments.
        options: by name, as they were given; None and False leave one out, True is a flag.
    """
    from peftcli.distributed.launching import is_launched, launch_peft

    if processes is None or processes == 1 or is_launched():
        return
    given = [
        [name] if value is True else [name, str(value)] for name, value in options.items() if value not in (None, False)
    ]
    raise typer.Exit(launch_peft([command, *map(str, names), *(word for words in given for word in words)], processes))


def refuse_shared_input(data: str | None, option: str) -> None:
    """Refuse standard input where a launcher gave the same one to several processes.

    Raises:
        UserError: it is named there.
    """
    from peftcli.distributed.launching import is_launched

    if data in NAMES and is_launched():
        problem = f"{option}: several processes cannot read one standard input"
        raise UserError(problem, suggestion="write the rows to a file, or start them with `peft ... --num-processes N`")
