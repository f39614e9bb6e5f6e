"""The tokens at which a generated answer stops."""

from __future__ import annotations

from typing import Any

from peftcli.data.chat.chat_template import ChatTemplate
from peftcli.data.chat.renderer import ChatRenderer


def end_of_turn(tokenizer: Any, template: ChatTemplate | None) -> str:
    """Return the token that ends an answer in a chat template, '' without a template or such a token."""
    return ChatRenderer(tokenizer, template, "completions").end_of_turn if template is not None else ""


def stop_tokens(tokenizer: Any, turn: str) -> tuple[int, ...]:
    """Return the tokens at which generation should stop: EOS, and the end of a turn.

    Args:
        turn: the token that ends a turn, or ''.
    """
    stops = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if turn:
        number = tokenizer.convert_tokens_to_ids(turn)
        if isinstance(number, int) and number not in stops and number != tokenizer.unk_token_id:
            stops.append(number)
    return tuple(stops)
