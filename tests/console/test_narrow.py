"""Narrow terminals: messages part between words, and tables lose nothing without saying so."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from peftcli.console import output
from peftcli.console.chat.chat_commands import HELP
from peftcli.console.output import print_table, table
from peftcli.console.terminal import wrapped
from tests.command_line import Cli

COLUMNS = ("run", "state", "score", "size")
ROWS = [("first", "finished", "accuracy 37.5%", "117.2 KB"), ("a longer name", "interrupted at 3/4", "", "9 B")]


def drawn(width: int, spare: tuple[int, ...] = (3,), terminal: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, highlight=False)
    print_table(console, table(COLUMNS, ROWS, numeric=(2, 3)), spare)
    return stream.getvalue()


@pytest.mark.parametrize("width", [20, 30, 40, 52, 60, 70, 80, 200])
def test_every_cell_is_there_or_its_column_is_named(width: int) -> None:
    text = " ".join(drawn(width).split())  # cells may part between words where each has its own line
    for row in ROWS:
        for heading, cell in zip(COLUMNS, row, strict=True):
            assert cell in text or f"columns that do not fit: {heading}" in text, text


@pytest.mark.parametrize("width", [20, 160])
def test_a_pipe_gets_the_whole_table_a_line_a_row(width: int) -> None:
    lines = drawn(width, terminal=False).splitlines()
    assert len(lines) == len(ROWS) + 2  # the headings and the line below them
    for row, line in zip(ROWS, lines[2:], strict=True):
        assert all(cell in line for cell in row)


def test_brackets_in_headings_are_no_markup() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, highlight=False)
    print_table(console, table(("[red]", "a[/b]"), [("first", "second")]))
    assert "[red]" in Text.from_ansi(stream.getvalue()).plain and "a[/b]" in Text.from_ansi(stream.getvalue()).plain


@pytest.mark.parametrize("width", [40, 60, 80])
def test_sentences_part_between_words_and_numbers_never(width: int) -> None:
    rows = [("lora", "8", "Hu et al. 2021, arXiv:2106.09685"), ("prompt_tuning", "22,713,221", "a word " * 20)]
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, highlight=False)
    print_table(console, table(("method", "trained", "paper"), rows))
    found = Text.from_ansi(stream.getvalue()).plain
    assert all(word in found for word in ("prompt_tuning", "22,713,221", "arXiv:2106.09685"))
    assert found.count("word") == 20 and max(map(len, found.splitlines())) <= width


def test_messages_part_between_words() -> None:
    text = "error: the run is not finished\n    go on with `peft train RECIPE --resume`, or use --checkpoint last"
    lines = wrapped(text, 40).split("\n")
    assert all(len(line) <= 40 for line in lines) and " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert any("`peft train RECIPE --resume`" in line for line in lines)  # to copy it
    assert lines[0] == "error: the run is not finished" and all(line.startswith("    ") for line in lines[1:])
    assert wrapped("short", 40) == "short" and wrapped("a" * 50, 40) == "a" * 50


def test_a_method_in_80_columns_says_what_its_parameters_mean(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, highlight=False)
    monkeypatch.setattr(output, "result_console", lambda: console)
    assert cli("methods", "lora").code == 0
    text = Text.from_ansi(stream.getvalue()).plain
    assert "meaning" in text and "columns that do not fit: type" in text
    after = text.splitlines()[next(n for n, line in enumerate(text.splitlines()) if "servers" in line) + 1]
    assert after.startswith(" " * 17) and after.strip()  # the rest of a fact stands below its beginning


def test_the_help_of_a_chat_fits_into_80_columns() -> None:
    width = max(map(len, HELP))
    assert all(width + 2 + len(what) <= 80 for what in HELP.values())
