"""Arguments of a chat template, such as `enable_thinking`, written into it as its defaults.

The template with its arguments is what the rows are rendered with and what goes out with the model, so that whoever
uses the model has them, too, and may still give others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peftcli.data.chat.chat_template import ChatTemplate
from peftcli.errors import Problem, UserError

KEY = "data.chat_template_kwargs"
GIVEN = ("messages", "tools", "add_generation_prompt")
"""What every rendering gives to a template."""


def with_arguments(template: ChatTemplate | None, arguments: Mapping[str, Any]) -> ChatTemplate:
    """Return a template whose text sets some arguments where the caller gives none.

    Raises:
        UserError: there is no template, or it does not read an argument of that name.
    """
    if template is None:
        text = "there is no chat template that reads arguments: rows are rendered as plain text"
        raise UserError(Problem(text, key=KEY, suggestion="leave it out, or name a data.chat_template"))
    problems = []
    for name in arguments:
        if not name.isidentifier() or name in GIVEN or not re.search(rf"(?<![.'\"\w]){name}\b", template.text):
            text = f"the chat template does not read {name!r}" if name not in GIVEN else f"{name!r} is not for recipes"
            remedy = "its arguments are the names that its Jinja text reads; see `chat_template` of the tokenizer"
            problems.append(Problem(text, key=f"{KEY}.{name}", suggestion=remedy))
    if problems:
        raise UserError(problems)
    defaults = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in sorted(arguments.items())
    )
    return replace(template, text=defaults + template.text)


def _literal(value: Any) -> str:
    """Return a value of a recipe as Jinja writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
