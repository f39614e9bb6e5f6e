"""A chat on a terminal, whose answers appear while they are written, and in a pipe: a line each, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from peftcli.console.chat.chat_commands import LEAVE, ChatCommands, shown
from peftcli.console.chat.whole_words import WholeWords
from peftcli.console.options import note
from peftcli.console.terminal import data_stream, safe_console, spinner_for, wrapped
from peftcli.errors import UserError
from peftcli.inference.chat.chat_session import Answer, Chat
from peftcli.stop_signals import interrupted_by_keyboard

if TYPE_CHECKING:
    from rich.console import Console

SIDE_BY_SIDE = 80
"""Columns from which two answers stand side by side."""


def answer_lines(chat: Chat, lines: Iterable[str], *, as_json: bool) -> None:
    """Take each line as a turn of the user, and write each answer as a line on standard output.

    Without `as_json`, line breaks of an answer become spaces, so that line n answers turn n.
    """
    stream = data_stream()
    broken = 0
    for number, line in enumerate(lines, 1):
        turn = line.rstrip("\r\n")
        if not turn.strip():
            note(f"line {number} of standard input is empty and was skipped")
            continue
        try:
            answer = chat.ask(turn, lambda _piece: None)
        except UserError as error:
            where = f"line {number} of standard input: "
            raise UserError(replace(each, message=where + each.message) for each in error.problems) from error
        if answer.finish_reason == "interrupted":  # nobody types here: Ctrl-C is for the program
            raise KeyboardInterrupt
        _say_how_it_ended(answer, f"line {number}: ")
        parts = answer.text.splitlines()
        broken += len(parts) > 1
        stream.write((json.dumps(answer.text, ensure_ascii=False) if as_json else " ".join(parts)) + "\n")
        stream.flush()
    if broken and not as_json:
        note(f"{broken} answers had line breaks, written as spaces; --json keeps them")


def _say_how_it_ended(answer: Answer, where: str = "") -> None:
    if not answer.text.strip() and answer.finish_reason == "stop":
        note(f"{where}the answer is empty: the model ended it at once")
    if answer.left_out:
        note(f"{where}the {answer.left_out} oldest rounds were left out: they do not fit together with the answer")
    if answer.finish_reason == "length":
        note(f"{where}the answer reached the limit of tokens; --max-new-tokens (/set max_new_tokens) raises it")


class ChatScreen:
    """A chat with a person."""

    def __init__(self, chat: Chat) -> None:
        self._chat, self._commands = chat, ChatCommands(chat)
        self._console: Console = safe_console()
        self._told_to_leave = False

    def run(self) -> None:
        """Ask for turns until the person leaves."""
        _use_line_editing()
        self._say(f"{self._chat.name}: {shown(self._chat.settings)[0]}. /help shows the commands.")
        while True:
            line = self._read()
            if line is None or line in LEAVE:
                return
            if not line:
                continue
            try:
                self._take(line)
            except UserError as error:
                for problem in error.problems:
                    self._say(str(problem), style="red")

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(wrapped(text, self._console.width), style=style, markup=False, soft_wrap=True)

    def _read(self) -> str | None:
        """Return what the person typed; None where there will be nothing more."""
        with interrupted_by_keyboard() as interrupt:
            try:
                line = input("\nyou> ").strip()
                while line.endswith("\\"):
                    line = line[:-1] + "\n" + input("...> ").rstrip()
            except EOFError:
                self._console.print()
                return None
            except KeyboardInterrupt:
                if not interrupt.requested:  # another signal: it ends the program
                    raise
                return self._interrupted()
        self._told_to_leave = False
        return line

    def _interrupted(self) -> str | None:
        """Return an empty line, or None for the second Ctrl-C after another."""
        self._console.print()
        if self._told_to_leave:
            return None
        self._told_to_leave = True
        self._console.print("to leave, press Ctrl-C again or Ctrl-D, or type /exit", style="dim")
        return ""

    def _take(self, line: str) -> None:
        if line == "/base":
            self._show_base()
        elif line.startswith("/"):
            for text in self._commands.run(line):
                self._say(text, style="dim")
        else:
            head = f"{self._chat.name}> "
            self._console.print(f"\n{head}", end="", style="bold", markup=False)
            words = WholeWords(sys.stdout, self._console.width, len(head))
            answer = self._chat.ask(line, words.write)
            words.end()
            self._end(answer)

    def _show_base(self) -> None:
        with self._console.status("the base answers", spinner=spinner_for(self._console)):
            answer = self._chat.ask_base(lambda _piece: None)
        ours = self._chat.rounds[-1].answer or ""
        if self._console.width < SIDE_BY_SIDE:
            for name, text in ((self._chat.name, ours), ("base", answer.text)):
                self._console.print(f"\n{name}> ", end="", style="bold", markup=False)
                self._console.print(text, markup=False)
        else:
            from rich.table import Table
            from rich.text import Text

            table = Table(expand=True, show_lines=False)
            table.add_column(Text(self._chat.name), ratio=1)
            table.add_column("base, without the adapter", ratio=1)
            table.add_row(Text(ours.strip()), Text(answer.text.strip()))
            self._console.print(table)
        _say_how_it_ended(answer)

    def _end(self, answer: Answer) -> None:
        self._console.print()
        if answer.finish_reason == "interrupted":
            self._console.print("(interrupted; the text so far counts as the answer)", style="dim")
        _say_how_it_ended(answer)


def _use_line_editing() -> None:
    """Let `input` edit lines and go back to earlier ones, where Python was built with it."""
    with suppress(ImportError):
        import_module("readline")
