"""A chat template's text as a program with limits, and what it makes of messages: what transformers' renderer makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from transformers.utils import chat_template_utils

from peftcli.data.chat.rendered_text import Span
from peftcli.data.chat.template_limits import Account, LimitedEnvironment, weight

LONGEST = 2_000_000
"""Characters of a template; the longest that are published have some 50,000."""


class CompiledTemplate:
    """A template's program.

    Args:
        text: the Jinja source.

    Raises:
        TemplateSyntaxError: it is none, or Python cannot compile it.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise TemplateSyntaxError(f"it has {len(text):,} characters, more than {LONGEST:,}", 1)
        # transformers has no public way to the environment in which it compiles a template
        self._environment = LimitedEnvironment.like(chat_template_utils._compile_jinja_template("").environment)
        try:
            self._template: Template = self._environment.from_string(text)
        except SyntaxError as error:  # of the Python that Jinja makes: `break` outside a loop, 20 loops in each other
            raise TemplateSyntaxError(f"{error.msg} (in the Python that Jinja makes of it)", 1) from error
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            raise TemplateSyntaxError(f"it cannot be compiled: {str(error) or type(error).__name__}", 1) from error
        # Jinja keeps a chain of mappings, which it copies for each text at five times the cost of one mapping
        self._template.globals = dict(self._template.globals)

    def render(
        self, messages: Sequence[dict[str, Any]], given: Mapping[str, Any], *, tags: bool
    ) -> tuple[str, list[Span]]:
        """Return the text of messages, and the characters that the template's own tags mark.

        Args:
            messages: of one conversation.
            given: what else the template can read.
            tags: look for marked characters.

        Raises:
            TemplateLimit: it exceeds the limits.
            Exception: whatever the template does wrong.
        """
        chat, rest = _aliased([_plain(message) for message in messages]), _plain(given)
        self._environment.account = Account(lambda: weight([chat, rest], 10**12))
        blocks: list[str] = []
        spans: list[Span] = []
        if not tags:
            return "".join(self._template.generate(messages=chat, **rest)), spans
        with self._environment.activate_tracker(blocks, spans):  # type: ignore[attr-defined]  # of transformers
            for block in self._template.generate(messages=chat, **rest):
                blocks.append(block)
        return "".join(blocks), spans


@lru_cache(maxsize=16)
def compile_template(text: str) -> CompiledTemplate:
    """Return a text's program, made once.

    Raises:
        TemplateSyntaxError: as `CompiledTemplate`.
    """
    return CompiledTemplate(text)


_aliased = getattr(chat_template_utils, "_alias_reasoning_fields", list)
"""Gives older names of a message's reasoning the present one, in versions of transformers that do so."""


_SCALARS = (str, int, float)


def _plain(value: Any) -> Any:
    """Return a copy in plain types; what a row can hold besides becomes the name of its type, as in transformers."""
    if value is None or isinstance(value, _SCALARS):
        return value
    if isinstance(value, dict):  # most of what it holds is text, for which a call would take most of the time
        return {
            key if type(key) is str else _plain(key): inner if type(inner) is str else _plain(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return _plain(dict(value))
    return f"<{type(value).__name__}>"
