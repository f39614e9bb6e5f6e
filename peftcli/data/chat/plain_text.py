"""Conversations as plain text, for models without a chat template."""

from __future__ import annotations

from peftcli.data.chat.conversations import Conversation, is_empty
from peftcli.data.chat.left_out import parts_left_out, with_calls_as_text
from peftcli.data.chat.rendered_text import Rendered, TrainOn
from peftcli.data.read.records import RowError


def plain_text(conversation: Conversation, train_on: TrainOn, eos: str, *, predicting: bool = False) -> Rendered:
    """Return a conversation without a chat template: the format's usual plain form, else lines with the speaker.

    Raises:
        RowError: tools, which plain text cannot show.
    """
    if conversation.tools:
        raise RowError("tools need a chat template", "a tokenizer with one, or data.chat_template")
    if conversation.plain is not None:
        prompt, completion = conversation.plain
        if predicting:
            # in training a space before the completion belongs to its first token, as tokenizers have it ("▁sat")
            return Rendered(prompt.rstrip(" ") or prompt)
        if completion is None:
            return Rendered(prompt)
        start = 0 if train_on == "all" else len(prompt)
        return Rendered(prompt + completion, [(start, len(prompt) + len(completion))], close=True)
    return _spoken(conversation, train_on, eos, predicting)


def _spoken(conversation: Conversation, train_on: TrainOn, eos: str, predicting: bool) -> Rendered:
    conversation = with_calls_as_text(conversation)
    text, spans, close, empty = "", [], False, False
    last = max((i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"), default=-1)
    for number, message in enumerate(conversation.messages):
        role, content = message["role"], message["content"]
        if role != "assistant":
            text += f"{content}\n\n" if role == "system" else f"{role.capitalize()}: {content}\n"
            continue
        text += "Assistant:"
        start, ends = len(text), number == len(conversation.messages) - 1
        text += f" {content}" if ends else f" {content}{eos}"
        flag = conversation.trained[number]
        if flag if flag is not None else train_on != "last_turn" or number == last:
            spans.append((start, len(text)))
            close, empty = ends, empty or is_empty(message)
        text += "" if ends else "\n"
    if predicting:
        return Rendered(text + "Assistant:")
    if train_on == "all":
        spans = [(0, len(text))]
    unused = (*conversation.unused, *parts_left_out(conversation, text, None))
    return Rendered(text, spans, close=close, unused=unused, empty_answer=empty)
