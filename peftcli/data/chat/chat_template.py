"""A Jinja chat template, and the text that it makes of messages with a tokenizer's special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.chat.rendered_text import Span
from peftcli.data.read.records import RowError

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


class FilledTemplate:
    """A chat template with the special tokens of a tokenizer filled in."""

    def __init__(self, template: ChatTemplate, tokenizer: Any) -> None:
        self._template = template
        self._tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)

    def render(
        self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, *, generate: bool = False, tags: bool = False
    ) -> tuple[str, list[Span]]:
        """Return the text of messages, and the characters that the template's own tags mark.

        Args:
            generate: end the text where the assistant goes on.
            tags: look for marked characters; without it there are none.

        Raises:
            RowError: the template refuses the messages.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, indices = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self._template.text,
                return_assistant_tokens_mask=tags,
                add_generation_prompt=generate,
                **self._tokens,
            )
        # what a template can do wrong besides: divide by zero, count too far, call itself, read what is not there
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            roles = [str(message["role"]) for message in messages]
            name = self._template.name
            whose = "the tokenizer's chat template" if name == "tokenizer" else f"the chat template {name}"
            message = f"{whose} refuses roles {' '.join(roles)}: {str(error) or type(error).__name__}"
            raise RowError(message, _remedy(roles)) from error
        return str(texts[0]), [tuple(pair) for pair in indices[0]] if tags else []


def _remedy(roles: Sequence[str]) -> str:
    if "system" in roles:
        return (
            "roles as the template wants them: move the system text into the first user message, or set "
            "data.chat_template: gemma, which does so"
        )
    return "roles as the template wants them; data.chat_template names another template"
