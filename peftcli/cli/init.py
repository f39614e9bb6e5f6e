"""`peft init`: a first recipe from a few questions or options, and a look at the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.console.completions import complete_method, complete_task
from peftcli.console.options import refuse_nothing, refuse_taken
from peftcli.console.progress_bar import progress_shown
from peftcli.console.terminal import wrote

if TYPE_CHECKING:
    from peftcli.starting.look_at_rows import Rows


Model = Annotated[str | None, typer.Option("--model", metavar="M", help="A hub id or a directory.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE", help="Your rows: a file, a folder or a data set.", show_default=False),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="The task; by default recognised from the rows.",
        show_default=False,
        autocompletion=complete_task,
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="The method; by default the recommended one.",
        show_default=False,
        autocompletion=complete_method,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory of one device, such as 24GB.", show_default=False),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="File for the recipe.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("init", short_help="Write a first recipe for your model and data.")(init)


def init(
    model: Model = None,
    data: Data = None,
    task: Task = None,
    method: MethodName = None,
    memory: Memory = None,
    output: Output = Path("recipe.yaml"),
) -> None:
    """Look at the data and write a commented, valid recipe. On a terminal, it asks for what you do not give.

    Example: peft init --model HuggingFaceTB/SmolLM2-135M-Instruct --data rows.jsonl
    """
    from shlex import quote

    from peftcli.atomic import write_text
    from peftcli.console.starting_views.questions import can_ask
    from peftcli.errors import UserError
    from peftcli.protocol.registry import registry
    from peftcli.record.shown_numbers import bytes_of

    refuse_taken(output, "--output")
    for option, value in (("--model", model), ("--data", data), ("--task", task), ("--method", method)):
        if value is not None:
            refuse_nothing(value, option)
    size = None if memory is None else bytes_of("--memory", memory)
    if method is not None:
        registry.info(method)
    asking = can_ask()
    if not asking and (model is None or data is None):
        missing = [flag for flag, value in (("--model M", model), ("--data FILE", data)) if value is None]
        raise UserError(
            f"this is not a terminal, so nothing can be asked: {' and '.join(missing)} must be given",
            suggestion="peft init --model M --data FILE [--task TASK] [--method NAME] [--memory SIZE] [-o FILE]",
        )

    model = _model() if model is None else model
    rows = _rows(data)
    with progress_shown():  # torch takes seconds to import: after the first questions, and not in silence
        from peftcli.starting.first_recipe import Answers, first_recipe
    if asking:
        task, method, size = _rest(model, rows, task, method, size)
    with progress_shown():
        text = first_recipe(Answers(model, rows, task, method, size, str(output)))
    write_text(output, text, instead="choose another file with -o")
    file = quote(str(output))
    wrote(output, f"peft inspect {file}", f"peft train {file}")


_SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def _model() -> str:
    from peftcli.console.starting_views.questions import ask
    from peftcli.errors import UserError
    from peftcli.locations import resolve_location

    def wrong(answer: str) -> str | None:
        try:
            resolve_location(answer)
        except UserError as error:
            return str(error)
        return None

    return ask("Model (a hub id or a directory)", _SMALL, wrong)


def _rows(data: str | None) -> Rows:
    """Return the data, looked at; asks until something can be read."""
    from peftcli.console.options import about_option
    from peftcli.console.starting_views.questions import ask
    from peftcli.errors import UserError
    from peftcli.starting.look_at_rows import look_at_rows

    if data is not None:
        with about_option("--data"):
            return look_at_rows(data)
    found: list[Rows] = []

    def wrong(answer: str) -> str | None:
        try:
            found.append(look_at_rows(answer))
        except UserError as error:
            return str(error)
        return None

    ask("Data (a file, a folder, or a data set of the hub)", None, wrong)
    return found[-1]


def _rest(
    model: str, rows: Rows, task: str | None, method: str | None, size: int | None
) -> tuple[str | None, str | None, int | None]:
    """Ask for what is left, each with the answer that Enter gives."""
    from peftcli.console.starting_views.questions import ask
    from peftcli.errors import UserError
    from peftcli.protocol.registry import registry
    from peftcli.record.shown_numbers import bytes_of
    from peftcli.starting.first_recipe import likely_tasks, tasks_of_model

    def size_of(answer: str) -> str | None:
        try:
            bytes_of("memory", "1GB" if answer == "unknown" else answer)
        except UserError as error:
            return str(error)
        return None

    if task is None:
        fit = likely_tasks(rows, tasks_of_model(model))
        names = ", ".join(fit)
        task = ask(f"Task ({names})", fit[0], lambda one: None if one in fit else f"one of: {names}")
    if method is None:
        known = ["recommended", *registry.names()]
        method = ask("Method", "recommended", lambda one: None if one in known else f"one of: {', '.join(known)}")
    if size is None:
        answer = ask("Memory of one device, such as 24GB", "unknown", size_of)
        size = None if answer == "unknown" else bytes_of("memory", answer)
    return task, None if method == "recommended" else method, size
