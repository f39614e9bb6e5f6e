"""Rows of causal language models: ids, and a mask of the tokens that are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftcli.data.chat.conversations import Conversation
from peftcli.data.chat.plain_text import plain_text
from peftcli.data.chat.rendered_text import Rendered, Span
from peftcli.data.chat.renderer import ChatRenderer
from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.encode.encoded import DROPPED, KEPT, MASKED, TRUNCATED, Encoded, Ints, Outcome
from peftcli.data.encode.overflow import Bools, best_window, pieces
from peftcli.data.encode.tokenise import MARGIN, beginning, text_tokens
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, Text, Tokens
from peftcli.ignored_label import IGNORED


class CausalEncoder:
    """Encodes documents, prompts with completions, and conversations."""

    def __init__(self, tokenizer: Any, settings: EncodeSettings) -> None:
        self._settings = settings
        self._tokens = text_tokens(tokenizer)
        self._eos: int | None = tokenizer.eos_token_id
        self._eos_text = tokenizer.eos_token or ""
        self._head = np.array(added_in_front(tokenizer), dtype=np.int32)
        self._chat = ChatRenderer(tokenizer, settings.template, settings.train_on) if settings.template else None

    def encode(self, examples: Sequence[Example]) -> list[Outcome | RowError]:
        """Return the rows of each example, or why there are none."""
        rendered: list[Rendered | RowError | None] = [self._try_render(example) for example in examples]
        texts = [item for item in rendered if isinstance(item, Rendered)]
        tokenised = iter(self._tokenised(texts))
        out: list[Outcome | RowError] = []
        for example, item in zip(examples, rendered, strict=True):
            if isinstance(item, RowError):
                out.append(item)
            elif isinstance(item, Rendered):
                ids, spans, left = next(tokenised)
                full, mask = self._around(ids, spans, item)
                made = self._finish(full, mask, item)
                made.unused, made.tokens = item.unused, len(full) + left
                made.empty_answer = item.empty_answer and bool(made.rows)
                out.append(made)
            else:
                assert isinstance(example, Tokens)  # _try_render makes a text of every other example
                made = self._finish(*_given(example), None)
                made.tokens = len(example.input_ids)
                out.append(made)
        return out

    def _tokenised(self, items: Sequence[Rendered]) -> list[tuple[Ints, list[Span], int]]:
        """Tokenise texts; of a document that will be cut only the beginning, which may have ten million characters.

        The number is a guess at the tokens that were left out so.
        """
        shortened = [self._shortened(item) for item in items]
        found = self._tokens.encode([item.text for item in shortened], [item.spans for item in shortened])
        out = []
        for (ids, spans), item, short in zip(found, items, shortened, strict=True):
            if short is not item and len(ids) < self._settings.max_length + MARGIN:
                out.append((*self._tokens.encode([item.text], [item.spans])[0], 0))
            else:
                left = len(item.text) - len(short.text)
                out.append((ids, spans, round(left * len(ids) / max(1, len(short.text)))))
        return out

    def _shortened(self, item: Rendered) -> Rendered:
        """Return an item whose text is learnt from its first character and can only lose its end, shortened."""
        if self._settings.overflow != "truncate" or self._settings.predicting or item.spans != [(0, len(item.text))]:
            return item
        text = beginning(item.text, self._settings.max_length)
        return item if len(text) == len(item.text) else replace(item, text=text, spans=[(0, len(text))])

    def statistics(self) -> dict[str, int]:
        """Return how the learnt tokens were found and checked."""
        found = {"prefixes_checked": self._tokens.checked, "prefixes_disagreed": self._tokens.disagreed}
        if self._chat is None:
            return found
        return {
            **found,
            "prefix_rendered": self._chat.prefix_rendered,
            "calls_as_text": self._chat.calls_as_text,
        }

    def _try_render(self, example: Example) -> Rendered | RowError | None:
        try:
            return self._render(example)
        except RowError as error:
            return error

    def _render(self, example: Example) -> Rendered | None:
        """Return the text of an example, None when it is tokens already."""
        predicting = self._settings.predicting
        if isinstance(example, Tokens):
            return None
        if isinstance(example, Text):
            return Rendered(example.text, [(0, len(example.text))], close=not predicting)
        assert isinstance(example, Conversation)  # the formats of this task make nothing else
        if self._chat is None:
            return plain_text(example, self._settings.train_on, self._eos_text, predicting=predicting)
        return self._chat.prompt(example) if predicting else self._chat.render(example)

    def _around(self, ids: Ints, spans: Sequence[tuple[int, int]], item: Rendered) -> tuple[Ints, Bools]:
        """Return ids and mask with what belongs around the text: the tokenizer's first tokens, and EOS."""
        mask = np.zeros(len(ids), dtype=np.bool_)
        for start, end in spans:
            mask[start:end] = True
        head = self._head
        if not item.whole and not self._settings.add_head:
            head = head[:0]
        if len(head) and len(ids) >= len(head) and np.array_equal(ids[: len(head)], head):
            head = head[:0]  # the text has it already: never twice
        closes = item.close and self._eos is not None and (len(ids) == 0 or ids[-1] != self._eos)
        if not len(head) and not closes:
            return ids, mask
        tail = np.array([self._eos] if closes else [], dtype=np.int32)
        full = np.concatenate((head, ids, tail))
        return full, np.concatenate((np.zeros(len(head), np.bool_), mask, np.ones(len(tail), np.bool_)))

    def _finish(self, ids: Ints, mask: Bools, item: Rendered | None) -> Outcome:
        """Apply the length limit, and see whether anything is left to learn."""
        settings = self._settings
        if len(mask):
            mask[0] = False  # nothing stands before the first token, so nothing predicts it
        if settings.predicting:
            prompt = self._cut_prompt(ids)
            return Outcome([prompt], status=TRUNCATED if prompt.truncated else KEPT)
        if not mask.any():
            return Outcome(status=MASKED, reason=self._why_masked(item))
        if len(ids) <= settings.max_length:
            return Outcome([Encoded(ids, mask)])
        if settings.overflow in ("drop", "error"):
            return Outcome(status=DROPPED, reason=f"{len(ids)} tokens, more than max_length {settings.max_length}")
        if settings.overflow == "split":
            parts = [_piece(ids[part], mask[part]) for part in pieces(len(ids), settings.max_length)]
            learning = [part for part in parts if part.mask is not None and part.mask.any()]
            return Outcome(learning, status=TRUNCATED if learning else MASKED, reason="split by max_length")
        keep = self.first_kept(ids)
        window = settings.max_length - keep
        start = keep + best_window(mask[keep:], window) if window > 0 else 0
        cut_ids = np.concatenate((ids[:keep], ids[start : start + window]))
        cut = _piece(cut_ids, np.concatenate((mask[:keep], mask[start : start + window])))
        if cut.mask is None or not cut.mask.any():
            return Outcome(status=MASKED, reason=f"max_length {settings.max_length} leaves no token to train on")
        cut.truncated = True
        return Outcome([cut], status=TRUNCATED)

    def first_kept(self, ids: Ints) -> int:
        """Return how many tokens at the front stay in a cut row: BOS, or whatever the tokenizer puts there."""
        count = len(self._head)
        return count if count and count < self._settings.max_length and np.array_equal(ids[:count], self._head) else 0

    def _cut_prompt(self, ids: Ints) -> Encoded:
        """Return a prompt, its beginning cut when it is too long; the tokens at the front stay."""
        longest = self._settings.max_length
        if len(ids) <= longest:
            return Encoded(ids)
        keep = self.first_kept(ids)
        return Encoded(np.concatenate((ids[:keep], ids[len(ids) - (longest - keep) :])), truncated=True)

    def _why_masked(self, item: Rendered | None) -> str:
        if item is None:
            return "all labels are -100"
        if not item.text.strip():
            return "the row is empty"
        return (
            "no answer to train on: no assistant message, or train: false on all"
            if not item.spans
            else "no token to train on"
        )


def _given(example: Tokens) -> tuple[Ints, Bools]:
    """Return ids and mask of a row that came tokenised: labels other than -100 are learnt."""
    ids = np.array(example.input_ids, dtype=np.int32)
    if example.labels is None:
        return ids, np.ones(len(ids), dtype=np.bool_)
    return ids, np.array(example.labels, dtype=np.int64) != IGNORED


def _piece(ids: Ints, mask: Bools) -> Encoded:
    mask = mask.copy()
    mask[:1] = False
    return Encoded(ids, mask)


def added_in_front(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer puts before a text by itself, such as BOS."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return list(full[:at])
    return []
