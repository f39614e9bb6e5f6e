"""Exit codes and messages of the root command."""

from __future__ import annotations

import py_compile
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import typer
from typer.core import TyperGroup

from peftcli import __version__
from peftcli import cli as cli_package
from peftcli.cli import app as app_module
from peftcli.cli.app import command_of
from peftcli.errors import PeftCliError, Problem, Stopped, UserError, VerificationFailed
from tests.command_line import Cli


def test_version_and_help(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert __version__ in cli("--version").out
    monkeypatch.setenv("COLUMNS", "80")
    listed = cli("--help").out.partition("\nWrite a recipe:\n")[2]
    rows = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert rows == list(map(command_of, app_module.COMMANDS))  # a line each: what they do fits into 80 columns
    headings = [line.rstrip(":") for line in listed.splitlines() if line and not line.startswith("  ")]
    assert ["Write a recipe", *headings] == list(app_module.GROUPS)
    assert {module.name for module in iter_modules(cli_package.__path__)} == {"app", *app_module.COMMANDS}


def test_a_current_directory_that_was_removed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = cli("validate", tmp_path / "recipe.yaml")
    assert done.code == 2
    assert "current directory does not exist any more" in done.err
    assert "Traceback" not in done.err
    assert cli("--version").code == 0


def test_arguments_are_shown_as_they_are_typed(cli: Cli) -> None:
    help_text = cli("train", "--help").out
    assert "Usage: peft train [OPTIONS] RECIPE [KEY=VALUE]...\n" in help_text
    assert "\n  [KEY=VALUE]...  Changes to the recipe" in help_text and "<list" not in help_text
    assert "Usage: peft recipes show [OPTIONS] NAME\n" in cli("recipes", "show", "--help").out


@pytest.mark.parametrize("command", [command_of(name) for name in app_module.COMMANDS])
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert "Example: peft " in done.out
    assert not re.search(r"<(str|int|float)( range)?>", done.out)  # the name of a value, not of its type in Python


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such thing", suggestion="take another"), 2),
        (VerificationFailed("they differ"), 3),
        (Stopped("stopped at step 3"), 130),
        (PeftCliError("a bug"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("by zero"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_of_each_error(monkeypatch: pytest.MonkeyPatch, cli: Cli, error: BaseException, code: int) -> None:
    def build() -> typer.Typer:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def fail() -> None:
            raise error

        return app

    monkeypatch.setattr(app_module, "build_app", build)
    done = cli()
    assert done.code == code
    assert ("Traceback" in done.err) == isinstance(error, ZeroDivisionError)
    assert str(error) in done.err and done.out == ""


def test_an_end_of_file_is_no_abort(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk cuts what Python compiles; every later start then reads half of it."""
    module = tmp_path / "cut_off.py"
    module.write_text("NUMBERS = [1, 2, 3]\n")
    compiled = Path(py_compile.compile(str(module)) or "")
    compiled.write_bytes(compiled.read_bytes()[:40])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TyperGroup, "invoke", lambda *_: import_module("cut_off"))
    done = cli("methods")
    assert done.code == 2
    assert f"{compiled}, which Python compiled, is incomplete" in done.err and "remove the file" in done.err

    def ends(*_: object) -> None:
        raise EOFError("half of it")

    monkeypatch.setattr(TyperGroup, "invoke", ends)
    done = cli("methods")
    assert done.code == 1 and "a file ended before it should: half of it" in done.err and "This is a bug" in done.err


def test_all_problems_are_shown(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def build() -> typer.Typer:
        raise UserError(
            [Problem("first", file="r.yaml", line=3, key="method.r"), Problem("second", suggestion="do this")]
        )

    monkeypatch.setattr(app_module, "build_app", build)
    assert cli().err == "error: r.yaml:3: method.r: first\nerror: second\n    do this\n2 problems; nothing was done\n"


@pytest.mark.parametrize("command", ["merge", "eval"])
def test_ctrl_c_ends_any_command_with_130_and_a_sentence(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from peftcli.inference import evaluate_run as inference
    from peftcli.merging import merge_run as merge

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merge, "merge_run", interrupt)
    monkeypatch.setattr(inference, "evaluate_run", interrupt)
    done = cli(command, tmp_path, *(["-o", tmp_path / "out"] if command == "merge" else []))
    assert done.code == 130 and done.out == ""
    assert done.err == "stopped before it was done; nothing unfinished was kept\n"


def test_rows_from_an_option_are_named_by_it() -> None:
    from peftcli.console.options import about_option

    given = [Problem("no file 'x'", key="data.path"), Problem("bad", file="x", line=3), Problem("other", key="data")]
    with pytest.raises(UserError) as caught, about_option("--input"):
        raise UserError(given)
    assert caught.value.problems == (Problem("--input: no file 'x'"), *given[1:])
