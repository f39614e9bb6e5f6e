"""Ask for what was not given as an option, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from peftcli.console.terminal import say
from peftcli.errors import Stopped

Check = Callable[[str], str | None]
"""Returns what is wrong with an answer, or None."""


def can_ask() -> bool:
    """Return whether there is somebody to ask: both ends of the conversation are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(text: str, default: str | None = None, check: Check | None = None) -> str:
    """Return an answer, asking again until nothing is wrong with it; Enter takes the default.

    Raises:
        Stopped: Ctrl-C, or the end of the input (Ctrl-D).
    """
    while True:
        try:
            answer = str(typer.prompt(text, default=default, err=True)).strip()
        except typer.Abort:
            typer.echo(err=True)
            raise Stopped("stopped at a question: nothing was written") from None
        wrong = "an answer is needed" if not answer else check(answer) if check is not None else None
        if wrong is None:
            return answer
        say(f"  {wrong}")
