"""The errors that leave this package, and the exit code of each.

PeftCliError            1   a bug, unless a subclass says otherwise
├── UserError           2   the input is wrong or the request is impossible
│   ├── OutOfResources   2   the machine lacks room on a disk, the right to write, or memory
│   └── PeerLost         2   another process of the run has ended
├── VerificationFailed  3   a merged model does not agree with base + adapter
└── Stopped           130   the user stopped it; the message says what is saved
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where, and what to do.

    Args:
        message: what is wrong, what was received, what is allowed.
        file: the file at fault, as the user named it.
        line: 1-based line (or row) in that file.
        key: dotted path in the recipe, such as `method.r`.
        suggestion: the remedy, or the nearest valid name.
    """

    message: str
    file: str | None = None
    line: int | None = None
    key: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        # messages such as `method.r = 0; expected ...` name their key themselves
        key, message = self.key, self.message
        if key and message.startswith(key):
            key = None
        elif key and key.startswith(f"{message.partition(': ')[0]}."):  # or the block that the key lies in
            message = message.partition(": ")[2]
        head = ": ".join(part for part in (place, key) if part)
        text = f"{head}: {message}" if head else message
        return f"{text}\n    {self.suggestion}" if self.suggestion else text


class PeftCliError(Exception):
    """Base of every error that the command line turns into a message."""

    exit_code = 1


class UserError(PeftCliError):
    """The user's input is wrong or the request is impossible; carries every problem found.

    Args:
        problems: one message, one `Problem`, or several, which are shown together.
        suggestion: the remedy, when `problems` is a plain message.
    """

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem], *, suggestion: str | None = None) -> None:
        if isinstance(problems, str):
            problems = Problem(problems, suggestion=suggestion)
        if isinstance(problems, Problem):
            problems = (problems,)
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class OutOfResources(UserError):
    """The machine did not give what was needed: room on a disk, the right to write, memory."""

    def with_what_is_left(self, text: str) -> OutOfResources:
        """Return the same error, which also says what is kept and how to go on."""
        *others, last = self.problems
        suggestion = f"{last.suggestion}\n    {text}" if last.suggestion else text
        return type(self)([*others, replace(last, suggestion=suggestion)])


class PeerLost(UserError):
    """Another process of the run has ended or cannot be reached; why, only its own message says."""


class VerificationFailed(PeftCliError):
    """A merged model's outputs differ from base + adapter by more than the tolerance."""

    exit_code = 3


class Stopped(PeftCliError):
    """The user stopped what was running; the message says what is saved and how to go on."""

    exit_code = 130


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Let every problem of the context name a place: those that name none are about this file or directory.

    Raises:
        UserError: in place of one without a place.
    """
    try:
        yield
    except UserError as error:
        if all(problem.file or str(path) in problem.message for problem in error.problems):
            raise
        placed = [p if p.file or str(path) in p.message else replace(p, file=str(path)) for p in error.problems]
        raise UserError(placed) from error
