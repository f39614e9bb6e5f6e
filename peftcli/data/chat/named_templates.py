"""Chat templates by name, for tokenizers that have none: small Jinja files beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.data.chat.chat_template import KEY, ChatTemplate, compiled
from peftcli.data.chat.template_arguments import with_arguments
from peftcli.errors import Problem, UserError
from peftcli.locations import expanded
from peftcli.suggestions import did_you_mean, nearest

FOLDER = Path(__file__).parent / "templates"
PLAIN = "none"


def template_names() -> list[str]:
    """Return the names that `data.chat_template` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def choose_template(
    wanted: str | None, tokenizer: Any, arguments: Mapping[str, Any] | None = None
) -> ChatTemplate | None:
    """Return the chat template of a recipe, None for plain text.

    Args:
        wanted: None for the tokenizer's own (if it has one), `none`, a known name, or a Jinja file.
        arguments: `data.chat_template_kwargs`.

    Raises:
        UserError: a name that is neither known nor a file, or an argument that the template does not read.
    """
    found = _chosen(wanted, tokenizer)
    return with_arguments(found, arguments) if arguments else found


def _chosen(wanted: str | None, tokenizer: Any) -> ChatTemplate | None:
    if wanted == PLAIN:
        return None
    if wanted is None:
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, dict):  # several by name; transformers takes this one without tools
            own = own.get("default")
        if own is not None and not isinstance(own, str):
            raise UserError(
                Problem("the tokenizer has a chat template that is no text", key=KEY, suggestion="name another one")
            )
        return ChatTemplate("tokenizer", own) if own else None
    if wanted in template_names():
        return ChatTemplate(wanted, (FOLDER / f"{wanted}.jinja").read_text(encoding="utf-8"))
    path = expanded(wanted)
    if path.is_file():
        return _parsed(path)
    near = nearest(wanted, [*template_names(), PLAIN], most=2)
    raise UserError(
        Problem(
            f"there is no chat template {wanted!r}, and no such file",
            key=KEY,
            suggestion=did_you_mean(near, f"known: {', '.join(template_names())}, none; or a Jinja file"),
        )
    )


def _parsed(path: Path) -> ChatTemplate:
    """Return the template of a Jinja file that can be parsed."""
    try:
        found = ChatTemplate(str(path), path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(Problem(f"cannot be read as text: {error}", file=str(path), key=KEY)) from error
    compiled(found)
    return found
