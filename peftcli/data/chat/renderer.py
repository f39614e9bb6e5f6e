"""Conversations as text: what a chat template makes of them, and which characters of it are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftcli.data.chat.chat_template import ChatTemplate, FilledTemplate
from peftcli.data.chat.conversations import Conversation, is_empty
from peftcli.data.chat.left_out import TemplateReads, check_answers, parts_left_out, with_calls_as_text
from peftcli.data.chat.rendered_text import Rendered, Span, TrainOn
from peftcli.data.chat.spans import AnswerSpans
from peftcli.data.chat.surroundings import TurnEnd


class ChatRenderer:
    """Renders conversations with one template and tokenizer, and finds the spans to learn.

    Attributes:
        calls_as_text: conversations whose tool calls were written as JSON, since the template shows none.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate, train_on: TrainOn) -> None:
        self._has_tags, self._train_on = template.has_tags, train_on
        self._template = FilledTemplate(template, tokenizer)
        self._answers = AnswerSpans(self._template, TurnEnd(tokenizer))
        self._reads = TemplateReads(template.text)
        self.calls_as_text = 0

    @property
    def text_after_answers(self) -> str:
        """What the template writes behind an answer where that is no token of the tokenizer; '' where it is one."""
        around = self._answers.around
        return around.end_of_turn if around is not None and not around.is_token else ""

    @property
    def end_of_turn(self) -> str:
        """The token with which the template ends an answer, '' when it has none."""
        around = self._answers.around
        return around.end_of_turn if around is not None and around.is_token else ""

    @property
    def prefix_rendered(self) -> int:
        """Conversations whose answers had to be found by rendering their prefixes."""
        return self._answers.prefix_rendered

    def prompt(self, conversation: Conversation) -> Rendered:
        """Return the text up to where the assistant goes on."""
        conversation = self._with_calls(conversation)
        text, _ = self._template.render(conversation.messages, conversation.tools, generate=True)
        return Rendered(text, whole=False)

    def render(self, conversation: Conversation) -> Rendered:
        """Return the text and the spans to learn.

        Raises:
            RowError: the template refuses the conversation, or its answers cannot be found in the text.
        """
        conversation = self._with_calls(conversation)
        text, tagged = self._template.render(conversation.messages, conversation.tools, tags=self._has_tags)
        answers = [number for number, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        spans = self._answers.find(conversation, text, tagged, answers)
        cut = list(check_answers(conversation, text, spans, answers))
        chosen, close, empty = [], False, False
        for place, number in enumerate(answers):
            flag = conversation.trained[number]
            if flag if flag is not None else self._train_on != "last_turn" or place == len(answers) - 1:
                chosen.append(spans[place])
                empty = empty or is_empty(conversation.messages[number])
                close = number == len(conversation.messages) - 1 and not self.end_of_turn
        if self._train_on == "all":
            left_out = [spans[place] for place, number in enumerate(answers) if conversation.trained[number] is False]
            chosen = _without((0, len(text)), left_out)
        unused = (*conversation.unused, *parts_left_out(conversation, text, self._reads), *cut)
        return Rendered(text, chosen, whole=False, close=close, unused=unused, empty_answer=empty)

    def _with_calls(self, conversation: Conversation) -> Conversation:
        if self._reads.key("tool_calls"):
            return conversation
        made = with_calls_as_text(conversation)
        self.calls_as_text += made is not conversation
        return made


def _without(whole: Span, holes: Sequence[Span]) -> list[Span]:
    """Return the parts of a span outside some others."""
    out, at = [], whole[0]
    for start, end in holes:
        out.append((at, start))
        at = end
    out.append((at, whole[1]))
    return [(start, end) for start, end in out if end > start]
