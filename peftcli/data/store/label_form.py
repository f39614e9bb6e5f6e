"""How the cells of a label column are read: as one value, a list, text of a list, a 0/1 vector, or parts of a text.

What is guessed where a guess is open comes with a note that says what was read and how to have it otherwise.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peftcli.data.read.records import RowError
from peftcli.data.store.labels import Kind, kind_of

_DELIMITERS = "|;,"
_NUMBERS = re.compile(r"[\d.\s,+-]+")
MANY = 20  # whole numbers with a point: up to so many different ones are classes, more are a scale


@dataclass(frozen=True)
class LabelForm:
    """How a cell becomes a label.

    Args:
        text: cells are text of a list, as CSV files have it.
        delimiter: cells are texts whose parts between this character are the labels; '' for none.
        width: columns of 0/1 vectors; 0 where lists hold names.
    """

    text: bool = False
    delimiter: str = ""
    width: int = 0

    def read(self, raw: Any) -> Any:
        """Return the label of a cell: names for several labels, else the cell's own value.

        Raises:
            RowError: the cell does not have this form.
        """
        value = raw
        if self.text and isinstance(raw, str):
            value = listed(raw)
            if value is None:
                raise RowError(f"the label {raw!r} is not a list", "text of a list, as in the first rows")
        if self.delimiter and isinstance(raw, str):
            value = [part.strip() for part in raw.split(self.delimiter) if part.strip()]
        if not self.width:
            return value
        if not _is_vector(value) or len(value) != self.width:
            raise RowError(f"the label is {raw!r}", f"{self.width} times 0 or 1, as in the first rows")
        return [str(place) for place, flag in enumerate(value) if flag]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that the constructor takes."""
        return asdict(self)


@dataclass(frozen=True)
class Judged:
    """What the first labels of a column say of all of them."""

    kind: Kind
    form: LabelForm
    notes: tuple[str, ...] = ()


def judge(values: Sequence[Any], wanted: Kind | None, names: Collection[str] = ()) -> Judged:
    """Judge a label column by its first values.

    Args:
        values: those that are not null.
        wanted: the kind that the recipe or the run asks for, or None.
        names: the labels of a run, which tell what stands between several labels in a cell.
    """
    notes: list[str] = []
    text = bool(values) and wanted in (None, "multi_label") and all(_is_list_text(value) for value in values)
    if text:
        values = [listed(value) for value in values]
        notes.append("the labels are lists written as text: they are read as several labels of a row")
    kind = wanted or kind_of(values)
    if kind == "multi_label":
        delimiter = _between(values, names) or _delimiter(values) if not text else ""
        width = len(values[0]) if values and isinstance(values[0], list) else 0
        if width < 2 or not all(_is_vector(value) and len(value) == width for value in values):
            return Judged(kind, LabelForm(text, delimiter), tuple(notes))
        notes.append(
            f"the labels are 0/1 vectors: each of the {width} columns is a label, named by its number from 0 "
            "(for names, write lists of the names that apply)"
        )
        return Judged(kind, LabelForm(text, "", width), tuple(notes))
    if wanted is None:
        kind, said = _numbers(values, kind)
        notes += said + _looks_like_several(values)
    return Judged(kind, LabelForm(), tuple(notes))


def _numbers(values: Sequence[Any], kind: Kind) -> tuple[Kind, list[str]]:
    """Return the kind of labels that are numbers with a point, and a note where they could be meant otherwise."""
    if kind != "regression":
        if values and all(isinstance(value, str) and re.fullmatch(r"-?\d+,\d+", value.strip()) for value in values):
            return kind, [
                "the labels are numbers with a decimal comma, which are read as names of classes: write a point"
            ]
        return kind, []
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return kind, []
    if not all(number.is_integer() for number in numbers):
        return kind, []
    different = len(set(numbers))
    if different == 2 or different <= min(MANY, len(numbers) // 2):
        text = f"the labels are {different} distinct values such as {values[0]}, all whole: they are read as classes"
        return "single_label", [f"{text}; model.problem_type: regression predicts the number"]
    text = "the labels are numbers with a point, all whole: they are read as a regression"
    return kind, [f"{text}; model.problem_type: single_label makes classes of them"]


def _looks_like_several(values: Sequence[Any]) -> list[str]:
    """Return a note where cells look like several labels with a character between them."""
    texts = [value for value in values if isinstance(value, str)]
    delimiter = _delimiter(texts)
    if not delimiter:
        return []
    example = next(text for text in texts if delimiter in text)
    return [
        f"labels such as {example!r} look like several labels with {delimiter!r} between them, and are read as one "
        "class each; model.problem_type: multi_label splits them"
    ]


def _delimiter(values: Sequence[Any]) -> str:
    """Return the character between several labels of a cell, whose parts are found in other cells too; '' for none."""
    texts = {value for value in values if isinstance(value, str)}
    for delimiter in _DELIMITERS:
        several = [text for text in texts if delimiter in text]
        parts = Counter(part.strip() for text in texts for part in set(text.split(delimiter)))
        if any(all(part.strip() and parts[part.strip()] > 1 for part in text.split(delimiter)) for text in several):
            return delimiter
    return ""


def _between(values: Sequence[Any], names: Collection[str]) -> str:
    """Return the character that divides the most cells into known labels alone; '' where none does."""
    texts = [value for value in values if isinstance(value, str)]
    found = {
        delimiter: sum(all(part.strip() in names for part in text.split(delimiter)) for text in texts)
        for delimiter in _DELIMITERS
    }
    best = max(_DELIMITERS, key=found.__getitem__)
    return best if found[best] else ""


def listed(text: str) -> list[Any] | None:
    """Return the list that a text writes: JSON, Python's own form, or numpy's `[1 0 1]`; None for any other text."""
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(bare)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) else None
    inside = bare[1:-1]
    return [json.loads(part.rstrip(".")) for part in inside.split()] if _NUMBERS.fullmatch(inside) else None


def alike(names: Sequence[str]) -> list[list[str]]:
    """Return the labels that differ only in case, spaces or the way in which a number or character is written.

    `true` is another way to write 1, and `false` to write 0.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        number = re.sub(r"^([+-]?\d+)\.0*$", r"\1", text)
        groups.setdefault({"true": "1", "false": "0"}.get(number, number), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _is_list_text(value: Any) -> bool:
    return isinstance(value, str) and listed(value) is not None


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) and item in (0, 1) for item in value)
