"""Rows that are token numbers already, with labels of the task's kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.read.nested_values import structure
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example, Tokens
from peftcli.data.recognition.row_format import Column, RecognisedFormat, RowFormat
from peftcli.ignored_label import IGNORED


def _text(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return a row of a causal model: all of it is learnt, or the positions whose label is not -100."""
    ids = _ids(found, values)
    seen = _seen(found, values, len(ids))
    if found.predicting or "labels" not in found.columns:
        return [Tokens(ids[seen], None)]
    ids, labels = ids[seen], _token_labels(found, values, len(ids))[seen]
    if any(label not in (IGNORED, token) for label, token in zip(labels, ids, strict=True)):
        raise RowError("a label is neither -100 nor the token itself", "labels equal to input_ids, or -100")
    return [Tokens(ids, labels)]


def _pair(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return a row whose labels are the tokens of the target."""
    ids = _ids(found, values)
    labels = None if found.predicting else _token_labels(found, values, None)
    return [Tokens(ids[_seen(found, values, len(ids))], labels)]


def _labelled(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return a row with one raw label."""
    ids = _ids(found, values)
    return [Tokens(ids[_seen(found, values, len(ids))], None if found.predicting else _label(found, values))]


def _tagged(found: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
    """Return a row with a tag, or -100, for each token."""
    ids = _ids(found, values)
    seen = _seen(found, values, len(ids))
    return [Tokens(ids[seen], None if found.predicting else _token_labels(found, values, len(ids))[seen])]


def _ids(found: RecognisedFormat, values: Mapping[str, Any]) -> list[int]:
    ids = structure(found.cell(values, "input_ids"))
    if not _is_ints(ids) or not ids:
        raise found.wrong("input_ids is not a list of token numbers")
    if min(ids) < 0:
        raise RowError(f"input_ids holds {min(ids)}", "token numbers from 0")
    return list(ids)


def _seen(found: RecognisedFormat, values: Mapping[str, Any], length: int) -> slice:
    """Return where the row's own tokens are: padding before and behind them has an attention mask of 0.

    Raises:
        RowError: the mask is none, hides all tokens, or some between others, which no batch here can hide.
    """
    mask = structure(found.cell(values, "attention_mask"))
    if mask is None:
        return slice(None)
    if not _is_ints(mask) or len(mask) != length or not set(mask) <= {0, 1}:
        raise found.wrong("attention_mask is not a list of 0 and 1 as long as input_ids")
    if 1 not in mask:
        raise RowError("attention_mask hides all tokens", "1 for each token of the row, 0 for padding")
    start, end = mask.index(1), length - mask[::-1].index(1)
    if 0 in mask[start:end]:
        place = start + mask[start:end].index(0) + 1
        raise RowError(f"attention_mask hides token {place}, between others", "rows without the tokens to hide")
    return slice(start, end)


def _label(found: RecognisedFormat, values: Mapping[str, Any]) -> Any:
    if "labels" not in found.columns:
        raise found.wrong("no column 'labels'")
    return found.label(values, "labels")


def _token_labels(found: RecognisedFormat, values: Mapping[str, Any], length: int | None) -> list[int]:
    """Return a list of labels; `length` is that of the row where each token has one."""
    labels = structure(_label(found, values))
    if not _is_ints(labels) or (length is not None and len(labels) != length):
        raise found.wrong("labels is not a list of numbers as long as input_ids")
    return list(labels)


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


FORMAT = RowFormat(
    name="pretokenized",
    columns=(
        Column("input_ids"),
        Column("labels", ("label",), required=False, target=True),
        Column("attention_mask", required=False),
    ),
    expected='{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}',
    makes={"text": _text, "pairs": _pair, "labelled": _labelled, "tagged": _tagged},
    rows=({"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},),
)
