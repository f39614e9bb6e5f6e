"""An input text and a target text, for sequence-to-sequence models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.recognition.examples import Example, InputTarget
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat


def _pair(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    return [InputTarget(found.prompt(values), found.target(values, "target"))]


FORMAT = RowFormat(
    name="input_target",
    columns=(
        Column("input", ("source", "src", "document", "article", "text", "dialogue")),
        Column("target", ("tgt", "summary", "output", "highlights", "translation", "label"), target=True),
    ),
    expected='{"input": "...", "target": "..."}',
    makes={"pairs": _pair},
    template_column="input",
    rows=({"input": "a long article", "target": "a short summary"},),
)
