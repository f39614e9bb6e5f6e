"""Find, in the characters of a rendered conversation, what the assistant wrote.

Three ways lead to the same spans, tried in this order: the template's own generation tags; the texts that the
template puts around an answer, learnt once from a made-up conversation and checked at each answer's exact place; and
prefix rendering (the conversation up to the answer, with the generation prompt), which costs two more renderings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftcli.data.chat.chat_template import FilledTemplate
from peftcli.data.chat.conversations import Conversation
from peftcli.data.chat.rendered_text import Span
from peftcli.data.chat.surroundings import TurnEnd, learn_surroundings
from peftcli.data.read.records import RowError


class AnswerSpans:
    """Finds the answers in what one template makes of conversations.

    Attributes:
        around: what the template puts around an answer, None where that could not be learnt.
        prefix_rendered: conversations whose answers had to be found by rendering their prefixes.
    """

    def __init__(self, template: FilledTemplate, turn_end: TurnEnd) -> None:
        self._template, self._turn_end = template, turn_end
        self.around = learn_surroundings(template, turn_end)
        self.prefix_rendered = 0

    def find(self, conversation: Conversation, text: str, tagged: list[Span], answers: list[int]) -> list[Span]:
        """Return the characters of each answer, its end of turn included.

        Args:
            text: the conversation, rendered.
            tagged: what the template's own tags mark in it.
            answers: numbers of the assistant's messages.

        Raises:
            RowError: an answer cannot be found in the text.
        """
        if tagged and len(tagged) == len(answers):
            return [(start, self._with_closing(text, end)) for start, end in tagged]
        found = self.by_surroundings(conversation.messages, text)
        if found is None:
            found = self.by_prefixes(conversation, text, answers)
        return found

    def _with_closing(self, text: str, end: int) -> int:
        """Return the end of a span, moved behind the end-of-turn token when that follows."""
        around = self.around
        if around is None or not around.closing or text[:end].rstrip().endswith(around.end_of_turn):
            return end
        return end + len(around.closing) if text.startswith(around.closing, end) else end

    def by_surroundings(self, messages: Sequence[dict[str, Any]], text: str) -> list[Span] | None:
        """Find every message in order, each answer between the learnt texts; None when one does not fit."""
        around = self.around
        if around is None:
            return None
        at, spans, before = 0, [], ""
        for message in messages:
            content = message["content"]
            if message["role"] != "assistant":
                at, length = _find(text, content, at)
                if at < 0:
                    return None
                at, before = at + length, message["role"]
                continue
            if before != "user" or not text.startswith(around.header, at) or "tool_calls" in message:
                return None
            start = at + len(around.header)
            end = self._answer_end(text, content, start)
            if end is None:
                return None
            spans.append((start, end))
            at, before = end, "assistant"
        return spans

    def _answer_end(self, text: str, content: str, start: int) -> int | None:
        """Return where an answer that generation starts at `start` ends, its closing included."""
        assert self.around is not None
        for gap in self.around.gaps:
            for form in dict.fromkeys((content, content.strip())):
                end = start + len(gap) + len(form)
                if text.startswith(gap + form, start) and text.startswith(self.around.closing, end):
                    return end + len(self.around.closing)
        return None

    def by_prefixes(self, conversation: Conversation, text: str, answers: list[int]) -> list[Span]:
        """Find each answer by rendering the conversation before and behind it.

        Raises:
            RowError: neither the rendered prefixes nor the answer's own text are in the whole.
        """
        self.prefix_rendered += 1
        spans: list[Span] = []
        for number in answers:
            messages, tools = conversation.messages, conversation.tools
            floor = spans[-1][1] if spans else 0
            start = self._prefix_start(messages[:number], tools, text, floor)
            if start is None:
                start = self._content_start(messages[number], text, floor)
            if start is None:
                raise RowError(f"message {number + 1} cannot be found in the rendered text", "another chat_template")
            spans.append((start, self._prefix_end(messages[: number + 1], tools, text, start)))
        return spans

    def _prefix_start(
        self, before: Sequence[dict[str, Any]], tools: list[Any] | None, text: str, floor: int
    ) -> int | None:
        if not before:
            return None
        try:
            prefix, _ = self._template.render(before, tools, generate=True)
        except RowError:
            return None
        return len(prefix) if text.startswith(prefix) and len(prefix) >= floor else None

    def _content_start(self, message: dict[str, Any], text: str, floor: int) -> int | None:
        content = message["content"].strip()
        at = text.find(content, floor) if content else -1
        return at if at >= 0 else None

    def _prefix_end(self, upto: Sequence[dict[str, Any]], tools: list[Any] | None, text: str, start: int) -> int:
        """Return the end of the answer: where rendering up to it ends, cut behind its end-of-turn token."""
        token = self.around.end_of_turn if self.around else ""
        try:
            prefix, _ = self._template.render(upto, tools)
        except RowError:
            prefix = ""
        limit = len(prefix) if len(prefix) > start and text.startswith(prefix) else len(text)
        content = upto[-1]["content"].strip()
        behind = text.find(content, start, limit) + len(content) if content and content in text[start:limit] else start
        at = text.find(token, behind, limit) if token else -1
        if at >= 0:
            return at + len(token)
        # templates that a probe does not show: behind the first special token after the answer
        closing, special = self._turn_end.closing(text[behind:limit])
        return behind + len(closing) if special or limit < len(text) else limit


def _find(text: str, content: str, at: int) -> tuple[int, int]:
    """Return where a message's text starts and how long it is there; templates may strip it."""
    found = text.find(content, at)
    if found >= 0:
        return found, len(content)
    bare = content.strip()
    return text.find(bare, at), len(bare)
