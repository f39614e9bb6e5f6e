"""A Jinja chat template, and the text that it makes of messages with a tokenizer's special tokens."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peftcli.data.chat.rendered_text import Span
from peftcli.data.read.records import RowError
from peftcli.errors import Problem, UserError

if TYPE_CHECKING:
    from peftcli.data.chat.compiled_template import CompiledTemplate

KEY = "data.chat_template"
_ANOTHER = "data.chat_template names another template"
_PROBES = ("Mf3kT8", "Wd6nR2")  # words that no template holds

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template.

    Args:
        name: its name in reports: `tokenizer`, a known name, or a file.
        text: the Jinja source.
    """

    name: str
    text: str

    @property
    def has_tags(self) -> bool:
        """Whether the template marks what the assistant generates."""
        return bool(_GENERATION.search(self.text))


def compiled(template: ChatTemplate) -> CompiledTemplate:
    """Return a template's program.

    Raises:
        UserError: the text is no Jinja template; names it and the line.
    """
    from jinja2 import TemplateSyntaxError

    from peftcli.data.chat.compiled_template import compile_template

    try:
        return compile_template(template.text)
    except TemplateSyntaxError as error:
        own = template.name == "tokenizer"
        text = f"{'the tokenizer has a chat template that is ' if own else ''}not a Jinja template: {error.message}"
        file, line = (None, f", line {error.lineno}") if own else (template.name, "")
        raise UserError(
            Problem(f"{text}{line}", file=file, line=error.lineno, key=KEY if own else None, suggestion=_ANOTHER)
        ) from error


class FilledTemplate:
    """A chat template with the special tokens of a tokenizer filled in."""

    def __init__(self, template: ChatTemplate, tokenizer: Any) -> None:
        self._template = template
        self._tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)

    @cached_property
    def wants_parts(self) -> bool:
        """Whether the template reads a message's content as a list of parts alone, as those of processors may.

        Such a template renders the text of a message as nothing. It is tried with made-up words.
        """
        as_text = self._shown(parts=False)
        return as_text < len(_PROBES) and self._shown(parts=True) > as_text

    def as_read(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return messages in the form that the template reads."""
        return [_with_parts(message) for message in messages] if self.wants_parts else list(messages)

    def _shown(self, *, parts: bool) -> int:
        """Return how many of two made-up messages the template shows; 0 where it refuses them."""
        from peftcli.data.chat.template_limits import TemplateLimit

        turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant"), _PROBES, strict=True)]
        given = [_with_parts(turn) for turn in turns] if parts else turns
        try:
            text, _ = self._compiled.render(given, self._given(), tags=False)
        except (TemplateLimit, MemoryError):
            raise
        except Exception:  # whatever a template does wrong: whoever has conversations is told
            return 0
        return sum(word in text for word in _PROBES)

    def _given(self, tools: list[Any] | None = None, *, generate: bool = False) -> dict[str, Any]:
        return {"tools": tools, "documents": None, "add_generation_prompt": generate, **self._tokens}

    @cached_property
    def _compiled(self) -> CompiledTemplate:
        return compiled(self._template)  # at the first conversation: plain text needs none

    def render(
        self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, *, generate: bool = False, tags: bool = False
    ) -> tuple[str, list[Span]]:
        """Return the text of messages, and the characters that the template's own tags mark.

        Args:
            generate: end the text where the assistant goes on.
            tags: look for marked characters; without it there are none.

        Raises:
            RowError: the template refuses the messages.
            UserError: it is no Jinja template, or exceeds the limits on its work, its text or its time.
        """
        from jinja2 import TemplateError

        from peftcli.data.chat.template_limits import TemplateLimit

        try:
            read = self.as_read(messages)
            return self._compiled.render(read, self._given(tools, generate=generate), tags=tags)
        except (TemplateLimit, MemoryError) as error:
            reason = f"{str(error) or 'it takes all memory'}{_line(error)}"
            raise UserError(Problem(f"{self._whose()} is refused: {reason}", key=KEY, suggestion=_ANOTHER)) from error
        # what a template can do wrong besides: divide by zero, count too far, call itself, read what is not there
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            roles = [str(message["role"]) for message in messages]
            reason = f"{str(error) or type(error).__name__}{_line(error)}"
            raise RowError(f"{self._whose()} refuses roles {' '.join(roles)}: {reason}", _remedy(roles)) from error

    def _whose(self) -> str:
        name = self._template.name
        return "the tokenizer's chat template" if name == "tokenizer" else f"the chat template {name}"


def _with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose text is a list of one part, as processors of images write it."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)


def _line(error: BaseException) -> str:
    """Return `, line N` of the template in which an error was raised, '' where that is not known."""
    lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == "<template>"]
    return f" (line {lines[-1]} of it)" if lines else ""


def _remedy(roles: Sequence[str]) -> str:
    if "system" in roles:
        return (
            "roles as the template wants them: move the system text into the first user message, or set "
            "data.chat_template: gemma, which does so"
        )
    return "roles as the template wants them; data.chat_template names another template"
