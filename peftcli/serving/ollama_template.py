"""A Jinja chat template as the Go template of an Ollama Modelfile, where its texts around turns are always the same.

The template is asked, not read: it renders conversations whose contents are marks, and the texts between the marks
become the pieces of the Go template. Longer conversations must then come out the same, or there is no translation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Turn = tuple[str, str]
"""Role and content."""
Render = Callable[[Sequence[Turn], bool], str]
"""Returns the text of turns, with the beginning of an answer or without; raises whatever the template raises."""

_MARKS = tuple(f"[[{number}]]" for number in range(7))
"""Contents that no template has a word for."""


@dataclass(frozen=True)
class Pieces:
    """The texts of a chat template around the contents of its turns.

    Args:
        begin: at the beginning.
        default: then, in a conversation without a system message.
        system: before and after a system message; None where the template takes none.
        user, assistant: before and after their contents.
        answer: where the answer begins.
    """

    begin: str
    default: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def text(self, turns: Sequence[Turn], answer: bool) -> str:
        """Return the text of turns."""
        pieces = [self.begin, "" if turns[0][0] == "system" else self.default]
        for role, content in turns:
            before, after = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}[role]
            pieces += [before, content, after]
        return "".join([*pieces, self.answer if answer else ""])

    def go(self) -> str:
        """Return the Go template."""
        branches = [("user", self.user), ("assistant", self.assistant)]
        if self.system is not None:
            branches.insert(0, ("system", self.system))
        parts = [_literal(self.begin)]
        if self.default:
            parts.append("{{ if not .System }}" + _literal(self.default) + "{{ end }}")
        parts.append("{{ range .Messages }}")
        for number, (role, (before, after)) in enumerate(branches):
            word = "else if" if number else "if"
            parts.append(f'{{{{ {word} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}')
        return "".join([*parts, "{{ end }}{{ end }}", _literal(self.answer)])


def _literal(text: str) -> str:
    """Return text as it is written in a Go template in front of an action, whose a brace at its end would be."""
    written = text.replace("{{", '{{ "{{" }}')
    return written[:-1] + '{{ "{" }}' if written.endswith("{") else written


def pieces_of(render: Render, begin: str) -> Pieces | None:
    """Return the pieces of a chat template, or None where no Go template can express it.

    Args:
        render: the template.
        begin: the token that the tokenizer itself puts before a text, which Ollama does, too; '' for none.
    """
    try:
        found = _found(render)
        if found is None or not all(_agrees(render, found, turns) for turns in _conversations(found)):
            return None
    except Exception:  # whatever a template raises for a conversation that it does not take
        return None
    if begin and found.begin.startswith(begin):
        found = Pieces(found.begin.removeprefix(begin), *_others(found))
    return found


def _others(pieces: Pieces) -> tuple[str, tuple[str, str] | None, tuple[str, str], tuple[str, str], str]:
    return pieces.default, pieces.system, pieces.user, pieces.assistant, pieces.answer


def _found(render: Render) -> Pieces | None:
    first, second, third = _MARKS[:3]
    asked = [("user", first)]
    rounds = [*asked, ("assistant", second), ("user", third)]
    whole = _between(render(rounds, False), (first, second, third))
    ended = _between(render(rounds[:2], False), (first, second))
    alone, answering = render(asked, False), render(asked, True)
    if whole is None or ended is None or not answering.startswith(alone):
        return None
    before_answer, between, after_user = whole[1], whole[2], whole[3]
    after_answer = ended[2]
    if not before_answer.startswith(after_user) or not between.startswith(after_answer):
        return None
    before_user = between.removeprefix(after_answer)
    if not whole[0].endswith(before_user):
        return None
    head = whole[0][: len(whole[0]) - len(before_user)]
    begin, system = _system(render, head, before_user)
    return Pieces(
        begin=begin,
        default=head.removeprefix(begin),
        system=system,
        user=(before_user, after_user),
        assistant=(before_answer.removeprefix(after_user), after_answer),
        answer=answering.removeprefix(alone),
    )


def _system(render: Render, head: str, before_user: str) -> tuple[str, tuple[str, str] | None]:
    """Return what every conversation begins with, and the texts around a system message."""
    try:
        found = _between(render([("system", _MARKS[3]), ("user", _MARKS[0])], False), (_MARKS[3], _MARKS[0]))
    except Exception:  # the template takes no system message
        return head, None
    if found is None or not found[1].endswith(before_user):
        return head, None
    before, after = found[0], found[1][: len(found[1]) - len(before_user)]
    same = 0
    while same < min(len(head), len(before)) and head[same] == before[same]:
        same += 1
    if same < len(head):  # the head is a default system message: only what is before all messages is the beginning
        same = 0
    return before[:same], (before[same:], after)


def _between(text: str, marks: Sequence[str]) -> list[str] | None:
    """Return the texts around marks, each of which must be there once and in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        parts.append(before)
    return [*parts, text]


def _conversations(pieces: Pieces) -> list[list[Turn]]:
    rounds: list[Turn] = [(("user", "assistant")[n % 2], mark) for n, mark in enumerate(_MARKS[:5])]
    found = [rounds[:1], rounds[:3], rounds]
    return [*found, *([("system", _MARKS[6]), *turns] for turns in found if pieces.system is not None)]


def _agrees(render: Render, pieces: Pieces, turns: list[Turn]) -> bool:
    return render(turns, True) == pieces.text(turns, True)
