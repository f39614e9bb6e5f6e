"""Documents: every token is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.recognition.examples import Example, Text
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _text(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    return [Text(found.prompt(values))]


FORMAT = RowFormat(
    name="text",
    columns=(Column("text", ("content", "document")),),
    expected='{"text": "..."}',
    makes={"text": _text},
    template_column="text",
    rows=({"text": "Training is on every token of this document."},),
)
