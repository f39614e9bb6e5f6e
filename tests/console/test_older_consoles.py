"""Consoles without colours, cursor or Unicode, and of 40 columns: nothing is lost, and nothing is noise."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peftcli.console.display import PlainView, choose_view
from peftcli.console.inspect_view import print_inspection
from peftcli.console.starting_views.recipe_list import print_recipes
from peftcli.console.tables.runs_table import print_runs
from peftcli.data.inspection import Inspection, inspect_data
from peftcli.record.listing.run_entry import RunEntry
from peftcli.starting.shipped_recipes import shipped_recipes
from tests.data.tools import ready, write_jsonl
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.TextIOWrapper):
    """Standard output that says it is a terminal, with an encoding of its own."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        held: Any = self.buffer
        return str(held.getvalue().decode(self.encoding))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    tokenizer = tiny_tokenizer()
    rows = [{"question": "the cat?", "answer": "a dog"}] * 3
    data = ready(tokenizer, write_jsonl(tmp_path_factory.mktemp("rows") / "a.jsonl", rows))
    return inspect_data(data, tokenizer, "causal_lm", rows=1, max_length=64)


@pytest.mark.parametrize(
    ("variables", "encoding", "mark", "bar", "sequences"),
    [
        ({"TERM": "dumb"}, "utf-8", "\u27e6", "\u2588", r"\x1b"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "utf-8", "\u27e6", "\u2588", r"\x1b\[[\d;]*(3\d|4\d|9\d)[;m]"),
        ({"TERM": "dumb"}, "cp1252", "[[", "#", r"\x1b|\\u"),
    ],
)
def test_learnt_text_is_marked_where_no_colour_shows_it(
    variables: dict[str, str], encoding: str, mark: str, bar: str, sequences: str, found: Inspection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    print_inspection(found, 80)
    text = re.sub(r"\x1b\[[\d;]*m", "", terminal.text)
    assert f"{mark}a dog" in text and f"{mark}learnt" in text and bar in text
    assert not re.search(sequences, terminal.text)


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(choose_view(), PlainView)


def test_lists_in_40_columns() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=40, force_terminal=True, color_system=None, highlight=False)
    recipes = shipped_recipes()
    print_recipes(console, recipes)
    runs = [
        RunEntry("runs/a-run-with-a-name", "failed", "lora", "causal_lm", "eval_loss", 1.5, 1000, reason="disk full")
    ]
    print_runs(runs, [], Path("runs"), console)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 40
    assert all(one.name in text for one in recipes) and "a-run-with-a-name" in text and "disk full" in text


def test_help_in_40_columns(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = cli("--help").out.splitlines()
    assert max(map(len, lines)) <= 40 and any(line.strip().startswith("train ") for line in lines)


def test_a_pipe_of_windows_older_encoding() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    typed = [sys.executable, "-m", "peftcli", "methods"]
    done = subprocess.run(typed, env=environment, capture_output=True, encoding="cp1252")
    assert done.returncode == 0 and "lora" in done.stdout and "----" in done.stdout
    assert "\\u" not in done.stdout and "Traceback" not in done.stderr
