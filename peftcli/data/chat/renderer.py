"""Conversations as text: render a chat template and find, in characters, what the assistant wrote.

Three ways lead to the same spans, tried in this order: the template's own generation tags; the texts that the
template puts around an answer, learnt once from a probe conversation and checked at each answer's exact place; and
prefix rendering (the conversation up to the answer, with the generation prompt), which costs two more renderings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftcli.data.chat.conversations import Conversation
from peftcli.data.read.records import RowError

Span = tuple[int, int]
TrainOn = Literal["completions", "last_turn", "all"]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBES = ("Qa7pX1", "Zk9wB2", "Qa7pX3", "Zk9wB4")  # words that no template holds


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template.

    Args:
        name: how it is called in reports: `tokenizer`, a known name, or a file.
        text: the Jinja source.
    """

    name: str
    text: str

    @property
    def has_tags(self) -> bool:
        """Whether the template marks what the assistant generates."""
        return bool(_GENERATION.search(self.text))


@dataclass(slots=True)
class Rendered:
    """A text to tokenise.

    Args:
        text: all of it.
        spans: characters to learn, in order.
        whole: whether the tokenizer's own first tokens and EOS belong around it (plain text, not a template's).
        close: append EOS, learnt, since nothing in the text ends the last answer.
    """

    text: str
    spans: list[Span] = field(default_factory=list)
    whole: bool = True
    close: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What a template puts around an answer.

    Args:
        header: from the end of the user's text to where generation starts.
        gaps: texts between there and the answer itself (an empty thinking block, a space).
        closing: from the end of the answer to the end of the end-of-turn token, '' when there is none.
        is_token: whether the end of turn is a token of the vocabulary.
    """

    header: str
    gaps: tuple[str, ...]
    closing: str
    is_token: bool
    end_of_turn: str


class ChatRenderer:
    """Renders conversations with one template and tokenizer, and finds the spans to learn."""

    def __init__(self, tokenizer: Any, template: ChatTemplate, train_on: TrainOn) -> None:
        self._template, self._train_on = template, train_on
        self._tokenizer = tokenizer
        self._tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._specials = sorted((str(token) for token in tokenizer.get_added_vocab()), key=len, reverse=True)
        self.around = self._learn()
        self.prefix_rendered = 0

    def prompt(self, conversation: Conversation) -> Rendered:
        """Return the text up to where the assistant goes on."""
        text, _ = self._render(conversation.messages, conversation.tools, generate=True)
        return Rendered(text, whole=False)

    def render(self, conversation: Conversation) -> Rendered:
        """Return the text and the spans to learn.

        Raises:
            RowError: the template refuses the conversation, or its answers cannot be found in the text.
        """
        text, tagged = self._render(conversation.messages, conversation.tools, tags=self._template.has_tags)
        answers = [number for number, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        spans = self._spans(conversation, text, tagged, answers)
        chosen, close = [], False
        for place, number in enumerate(answers):
            flag = conversation.trained[number]
            if flag if flag is not None else self._train_on != "last_turn" or place == len(answers) - 1:
                chosen.append(spans[place])
                close = number == len(conversation.messages) - 1 and not self._closes
        if self._train_on == "all":
            left_out = [spans[place] for place, number in enumerate(answers) if conversation.trained[number] is False]
            chosen = _without((0, len(text)), left_out)
        return Rendered(text, chosen, whole=False, close=close)

    @property
    def _closes(self) -> bool:
        """Whether the template itself ends a turn with a token that generation can stop at."""
        return self.around is not None and self.around.is_token

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, *, generate: bool = False, tags: bool = False
    ) -> tuple[str, list[Span]]:
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
        except (TemplateError, TypeError, ValueError) as error:
            roles = " ".join(message["role"] for message in messages)
            raise RowError(
                f"the chat template refuses roles {roles}: {error}", "roles as the template wants them"
            ) from error
        return str(texts[0]), [tuple(pair) for pair in indices[0]] if tags else []

    def _learn(self) -> Surroundings | None:
        """Return what the template puts around answers, None when a probe conversation does not show it."""
        roles = ("user", "assistant", "user", "assistant")
        turns = [{"role": role, "content": word} for role, word in zip(roles, _PROBES, strict=True)]
        try:
            text, _ = self._render(turns, None)
            asked, _ = self._render(turns[:1], None, generate=True)
        except RowError:
            return None
        places = [text.find(word) for word in _PROBES]
        begun = asked.find(_PROBES[0])
        if min(places) < 0 or sorted(places) != places or begun < 0:
            return None
        width = len(_PROBES[0])
        header = asked[begun + width :]
        between = [text[places[i] + width : places[i + 1]] for i in (0, 2)]
        if not all(gap.startswith(header) for gap in between):
            return None
        last = text[places[3] + width :]
        closing, token = self._closing(last)
        gaps = tuple(dict.fromkeys(gap[len(header) :] for gap in between))
        return Surroundings(header, gaps, closing, token is not None, token or closing.strip())

    def _closing(self, tail: str) -> tuple[str, str | None]:
        """Return the text up to the end of the first special token in what follows the last answer."""
        found = [(tail.find(token), token) for token in self._specials if token in tail]
        if found:
            at, token = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            return tail[: at + len(token)], token
        return tail.rstrip(), None

    def _spans(self, conversation: Conversation, text: str, tagged: list[Span], answers: list[int]) -> list[Span]:
        """Return the characters of each answer, its end of turn included."""
        if tagged and len(tagged) == len(answers):
            return [(start, self._with_closing(text, end)) for start, end in tagged]
        found = self._by_surroundings(conversation.messages, text)
        if found is None:
            found = self._by_prefixes(conversation, text, answers)
        return found

    def _with_closing(self, text: str, end: int) -> int:
        """Return the end of a span, moved behind the end-of-turn token when that follows."""
        around = self.around
        if around is None or not around.closing or text[:end].rstrip().endswith(around.end_of_turn):
            return end
        return end + len(around.closing) if text.startswith(around.closing, end) else end

    def _by_surroundings(self, messages: Sequence[dict[str, Any]], text: str) -> list[Span] | None:
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

    def _by_prefixes(self, conversation: Conversation, text: str, answers: list[int]) -> list[Span]:
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
            prefix, _ = self._render(before, tools, generate=True)
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
            prefix, _ = self._render(upto, tools)
        except RowError:
            prefix = ""
        limit = len(prefix) if len(prefix) > start and text.startswith(prefix) else len(text)
        content = upto[-1]["content"].strip()
        behind = text.find(content, start, limit) + len(content) if content and content in text[start:limit] else start
        at = text.find(token, behind, limit) if token else -1
        if at >= 0:
            return at + len(token)
        # templates that a probe does not show: behind the first special token after the answer
        closing, special = self._closing(text[behind:limit])
        return behind + len(closing) if special or limit < len(text) else limit


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
    text, spans, close = "", [], False
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
            close = ends
        text += "" if ends else "\n"
    if predicting:
        return Rendered(text + "Assistant:")
    if train_on == "all":
        spans = [(0, len(text))]
    return Rendered(text, spans, close=close)


def _find(text: str, content: str, at: int) -> tuple[int, int]:
    """Return where a message's text starts and how long it is there; templates may strip it."""
    found = text.find(content, at)
    if found >= 0:
        return found, len(content)
    bare = content.strip()
    return text.find(bare, at), len(bare)


def _without(whole: Span, holes: Sequence[Span]) -> list[Span]:
    """Return the parts of a span outside some others."""
    out, at = [], whole[0]
    for start, end in holes:
        out.append((at, start))
        at = end
    out.append((at, whole[1]))
    return [(start, end) for start, end in out if end > start]
