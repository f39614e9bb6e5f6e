"""Words with a tag for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import Record, RowError
from peftcli.data.recognition.examples import Example, Tagged
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat

_WORD = re.compile(r"\w+(?:[-'\u2019]\w+|[.,:]\d+)*|[^\w\s]")


def _tagged(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    words = structure(found.cell(values, "tokens"))
    if found.predicting and isinstance(words, str):
        words = words_of(words)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise found.wrong(f"{found.columns['tokens']!r} is not a list of words")
    if found.predicting:
        return [Tagged(words, None)]
    tags = structure(found.label(values, "tags"))
    if not isinstance(tags, list) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, list) else "no list of"
        raise RowError(f"{len(words)} tokens but {count} tags", "one tag for each token")
    for tag in tags:
        if isinstance(tag, bool) or not isinstance(tag, str | int) or tag == "":
            raise found.wrong(f"the tag {tag!r} is neither a name nor a number")
    return [Tagged(words, tags)]


def words_of(text: str) -> list[str]:
    """Return the words of a text: marks of punctuation are words of their own, but not within a word or a number."""
    return _WORD.findall(text)


def _has_lists(columns: Mapping[str, str], records: Sequence[Record]) -> bool:
    return any(isinstance(structure(record.values.get(columns["tokens"])), list) for record in records)


FORMAT = RowFormat(
    name="tokens_tags",
    columns=(
        Column("tokens", ("words",)),
        Column("tags", ("ner_tags", "pos_tags", "chunk_tags", "labels", "ner", "pos", "label"), target=True),
    ),
    expected='{"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]}',
    makes={"tagged": _tagged},
    looks_right=_has_lists,
    rows=({"tokens": ["Ada", "wrote", "code"], "tags": ["B-PER", "O", "O"]},),
    about="There is one tag for each word; the word's first token is trained on. The tokenizer must be a fast one. "
    "A word whose tag is the number -100 is read and not learnt. "
    "Words behind `max_length` are neither learnt nor in a metric (`overflow: split` keeps them). "
    "`peft predict` also takes a text in place of the words, and divides it into words.",
)
