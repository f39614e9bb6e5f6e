"""A text, or a pair of texts, with one label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.recognition.examples import Example, Labelled
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat

_TEXTS = ("sentence", "sentence1", "premise", "question1", "question", "query", "content", "review", "document")
_PAIRS = ("sentence2", "hypothesis", "question2", "answer", "passage", "context", "response")
_LABELS = ("labels", "class", "category", "target", "score", "rating", "stars", "sentiment")


def labelled(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return the text, or the pair, with its label; None for the label when predicting."""
    text = found.prompt(values)
    pair = found.text(values, "text_pair") if "text_pair" in found.columns else None
    return [Labelled(text, pair, None if found.predicting else found.label(values, "label"))]


FORMAT = RowFormat(
    name="classification",
    columns=(
        Column("text", _TEXTS),
        Column("text_pair", _PAIRS, required=False),
        Column("label", _LABELS, target=True),
    ),
    expected='{"text": "...", "label": "sports"}; pairs also have "text_pair"; several labels are a list',
    makes={"labelled": labelled},
    template_column="text",
    rows=(
        {"text": "I liked it very much.", "label": "positive"},
        {"text": "A man sleeps.", "text_pair": "Nobody sleeps.", "label": "contradiction"},
        {"text": "cheap and slow", "label": ["price", "speed"]},
        {"text": "I liked it very much.", "label": 4.5},
    ),
    about="""\
The second row has a pair of texts, the third several labels (a list), the fourth a number with decimals (regression).
If the labels are ambiguous, `model.problem_type` decides: whole numbers are classes unless it is `regression`. Labels
are ordered numerically if all are whole numbers, else by name, and `id2label` holds the file's own values.

Several labels may also be a list written as text (`"['price', 'speed']"` in a CSV cell), a vector of zeros and ones
(its columns are the labels, named by number), or, with `model.problem_type: multi_label`, a text such as `price|speed`.
Whole numbers with a point (0.0, 1.0) are classes if there are few distinct ones. A note says what was guessed.""",
)
