"""The `peft` command: registers one module per command, and turns errors into messages and exit codes.

Nothing heavy is imported here or at the top of a command's module, so that `peft --help` answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from itertools import chain
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from peftcli import __version__
from peftcli.console.streams import ReaderLeft, fit_streams
from peftcli.console.terminal import say, shown_streams
from peftcli.distributed.launched_worker import PEER_LOST, LaunchedWorker
from peftcli.distributed.memory_errors import OTHER_MACHINE, OutOfMemory, is_out_of_memory, out_of_memory, release
from peftcli.errors import PeftCliError, Stopped, UserError
from peftcli.process_state import libraries_quiet, quick_exit, quiet_exit
from peftcli.stop_signals import ignore_signals, interrupted_by_signals

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Write a recipe": ("init", "recipes", "convert", "recommend", "validate", "inspect", "estimate", "count_params"),
    "Train": ("train", "runs", "report", "compare", "sweep"),
    "Use what was trained": ("eval", "predict", "chat", "merge", "export", "import_", "inspect_adapter"),
    "Look up": ("methods", "plugins", "schema"),
}
"""Modules of this package that hold a command, below the headings of `--help` and in its order."""

COMMANDS = tuple(chain(*GROUPS.values()))
"""The same without headings."""

_HELP = """Fine-tune pretrained models with few parameters, driven by one YAML recipe.

Start with: peft init --model M --data FILE, or peft recipes list"""


_NARROW = 52
"""Columns below which click keeps to lines of 50."""


class _Command(TyperCommand):
    """A command whose help writes arguments as they are typed: RECIPE [KEY=VALUE]..., without their types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name in the line of its usage."""
        pieces = [argument.metavar or argument.get_usage_pieces(ctx)[0] for argument in self._arguments(ctx)]
        return [self.options_metavar or "", *pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and options."""
        arguments = self._arguments(ctx)
        options = [param for param in self.get_params(ctx) if param not in arguments]
        for title, params in (("Arguments", arguments), ("Options", options)):
            records = [(param.metavar, param.get_help_record(ctx)) for param in params]
            shown = [(metavar if params is arguments and metavar else record[0], record[1])
                     for metavar, record in records if record is not None]  # fmt: skip
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)

    def _arguments(self, ctx: Any) -> list[Any]:
        return [param for param in self.get_params(ctx) if param.param_type_name == "argument"]


class _Commands(TyperGroup):
    """The commands; Ctrl-C ends each with a sentence, also where it left nothing to say."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands below their headings, what they do in one column."""
        widest = max(len(command_of(module)) for module in COMMANDS)
        for title, modules in GROUPS.items():
            with formatter.section(title):
                rows = [(command_of(module), self.commands[command_of(module)]) for module in modules]
                room = formatter.width - widest - 6
                formatter.write_dl([(name.ljust(widest), one.get_short_help_str(room)) for name, one in rows])

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed.

        Raises:
            UserError: the current directory was removed; libraries would end the process while they are imported. Or
                a file that Python compiled is damaged.
        """
        try:
            os.getcwd()
        except OSError as error:
            remedy = "change to a directory that exists, and try again"
            raise UserError("the current directory does not exist any more", suggestion=remedy) from error
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(_STOPPED) from None
        except EOFError as error:  # of which click makes "Aborted!"
            raise _unexpected_end(error) from error


def _unexpected_end(error: EOFError) -> Exception:
    """Return what an end of file means that no command expected: a compiled file that a full disk cut, or a bug."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        compiled = frame.f_locals.get("bytecode_path")  # of Python's import system
        if compiled is not None:
            reason = f"{compiled}, which Python compiled, is incomplete, perhaps because a disk was full"
            return UserError(reason, suggestion="remove the file: Python compiles it again")
    return RuntimeError(f"a file ended before it should: {error}")


def build_app() -> typer.Typer:
    """Return the application with every command registered."""
    app = typer.Typer(
        name="peft",
        cls=_Commands,
        no_args_is_help=True,
        # a bug shows a plain traceback, and plain help needs neither rich nor pygments
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _narrow_width()},
    )
    app.callback(help=_HELP)(_root)
    for name in COMMANDS:
        import_module(f"peftcli.cli.{name}").register(app)
    for group in (app, *(each.typer_instance for each in app.registered_groups)):
        for command in group.registered_commands if group is not None else []:
            command.cls = _Command
    return app


def command_of(module: str) -> str:
    """Return a command's name from its module's: `import_` is `import`, a word that Python keeps for itself."""
    return module.strip("_").replace("_", "-")


def _narrow_width() -> int | None:
    """Return the columns of a terminal for which click's help would be too wide; None leaves the width to click."""
    columns = shutil.get_terminal_size().columns
    return max(columns - 1, 20) if columns <= _NARROW else None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that DESIGN.md gives each outcome."""
    quick_exit()
    with fit_streams(), shown_streams(), interrupted_by_signals() as stop, libraries_quiet():
        worker = LaunchedWorker.of_environment()
        try:
            if worker is not None:
                worker.listen()
            code = _typed(arguments)
        except (Exception, KeyboardInterrupt) as error:
            if worker is not None:
                ignore_signals()  # the launcher sends some to all, once one has failed; this one says how it ended
            if worker is not None and worker.is_consequence(error):
                code = PEER_LOST
            else:
                code = _end(Stopped(_STOPPED) if stop.requested and not isinstance(error, PeftCliError) else error)
    if worker is not None:
        worker.leave(code)
    sys.exit(code)


_STOPPED = "stopped before it was done; nothing unfinished was kept"


def _typed(arguments: list[str] | None) -> int:
    """Run the command that was typed, and see to it that what it printed has arrived."""
    try:
        build_app()(arguments, prog_name="peft")
    except SystemExit as end:  # typer's way to return
        sys.stdout.flush()
        return end.code if isinstance(end.code, int) else 0
    return 0


def _end(error: BaseException) -> int:
    """Show an error; return the exit code."""
    if isinstance(error, ReaderLeft):
        return error.exit_code
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        release(error)
        quiet_exit()
    if isinstance(error, PeftCliError):
        say(_message(error))
        return error.exit_code
    if is_out_of_memory(error):  # it can run out anywhere; where something can be lowered, that is said there
        return _end(out_of_memory(error, "in this command", OTHER_MACHINE))
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "check that this path is of the right kind, and that this user may use it"
        say(f"error: {error.filename}: {error.strerror or error}\n    {remedy}")
        return 2
    _say("".join(traceback.format_exception(error)))
    _say("This is a bug in peftcli, not in your input: please report it with the lines above.")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"peft (peftcli) {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options that stand before a command; the callback above does their work."""


def _message(error: PeftCliError) -> str:
    if isinstance(error, Stopped):
        return str(error)
    if not isinstance(error, UserError):
        return f"error: {error}"
    problems = [f"error: {problem}" for problem in error.problems]
    if len(problems) > 1:
        problems.append(f"{len(problems)} problems; nothing was done")
    return "\n".join(problems)
