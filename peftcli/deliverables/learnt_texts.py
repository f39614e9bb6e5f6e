"""What training learnt of texts beyond the base's files: the chat template, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftcli.data.chat.named_templates import PLAIN, choose_template
from peftcli.data.chat.stop_tokens import end_of_turn, stop_tokens
from peftcli.data.prepared_data import PreparedData
from peftcli.errors import UserError
from peftcli.recipe.schema import Recipe
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LearntTexts:
    """What a user of the trained model needs to write prompts and to stop.

    Args:
        chat_template: Jinja source of the template that was trained with; None where it is the base's own, or none was.
        stop_token_ids: tokens at which an answer ends, those of the base's own generation settings not counted.
    """

    chat_template: str | None = None
    stop_token_ids: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads."""
        return {"chat_template": self.chat_template, "stop_token_ids": list(self.stop_token_ids)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LearntTexts:
        """Rebuild what `as_dict` returned."""
        return cls(data.get("chat_template"), tuple(data.get("stop_token_ids", ())))


def learnt_texts(recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerBase) -> LearntTexts:
    """Return what a run learns of texts from its prepared data; nothing for a task that generates no text."""
    if not task_info(recipe.task).generates:
        return LearntTexts()
    return LearntTexts(_changed(data.chat_template, tokenizer), data.stop_token_ids)


def learnt_texts_of_recipe(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[LearntTexts, list[str]]:
    """Return what the recipe of a run tells of it, for runs whose adapter does not record it, and notes."""
    info = task_info(recipe.task)
    if recipe.data is None or not info.generates:
        return LearntTexts(), []
    wanted = recipe.data.chat_template if info.reads == "text" else PLAIN  # as rows are prepared
    try:
        template = choose_template(wanted, tokenizer, recipe.data.chat_template_kwargs)
    except UserError:
        return LearntTexts(), [f"the chat template {wanted} is no longer there: the result has the base's"]
    stops = stop_tokens(tokenizer, end_of_turn(tokenizer, template))
    return LearntTexts(_changed(template.text if template else None, tokenizer), stops), []


def is_plain_text(recipe: Recipe) -> bool:
    """Return whether a recipe wants plain text, although the base may have a chat template."""
    return recipe.data is not None and recipe.data.chat_template == PLAIN and task_info(recipe.task).reads == "text"


PLAIN_TEXT = (
    "trained on plain text (data.chat_template: none): a server that finds the base's chat template puts it around the "
    "turns of a chat, so send it prompts to complete"
)
"""What the user of a deliverable should know where `is_plain_text`."""


def _changed(template: str | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template, None if it is the one that the tokenizer brings."""
    own = choose_template(None, tokenizer)
    return None if own is not None and own.text == template else template
