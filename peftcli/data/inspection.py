"""What a user wants to see before training: rows as the model sees them, lengths, equal rows, label balance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.data.overlap import shared_rows, stored_rows
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import Row, RowSet, StoredRows, sequences_of
from peftcli.data.store.labels import LabelSpec
from peftcli.ignored_label import IGNORED
from peftcli.recipe.schema import TaskName
from peftcli.tasks.task_table import task_info

BINS = 12  # bars of the length histogram
_LOOKED_AT = 500  # rows among which examples of different labels are sought: files are often sorted by label
LISTED = 5  # pairs of equal rows that are named
CONTEXT = 8  # tokens decoded before a token to find the text that it adds


@dataclass(frozen=True)
class Token:
    """One token as text; `label` is its tag, where tokens have one; `rejected` where it is of a pair's worse side."""

    text: str
    supervised: bool
    special: bool = False
    label: str | None = None
    rejected: bool = False


@dataclass(frozen=True)
class Example:
    """One row with its place in the file; `label` is the row's own, where rows have one."""

    source: str
    row: int
    tokens: list[Token]
    label: str | None = None


@dataclass(frozen=True)
class Inspection:
    """Everything that `peft inspect` shows.

    Args:
        counts: rows, kept, truncated, dropped, fully_masked, skipped.
        lengths: (first, last, rows) of each bar; lengths from `first` to `last` inclusive.
        length_quantiles: shortest, median, 95% quantile and longest of the training rows as they are used.
        uncut_quantiles: the same of every row of the training files before anything is cut, split or left out.
        duplicates: training rows with the same tokens as an earlier one; the pairs name some of them.
        overlap: by validation set, its rows that are also training rows.
        contradictions: training preferences that an earlier one has the other way round, None where rows are none; the
            pairs name some of them.
        labels: label to its share of rows, by set.
    """

    report: dict[str, Any]
    counts: dict[str, int]
    max_length: int
    examples: list[Example]
    lengths: list[tuple[int, int, int]]
    length_quantiles: dict[str, int]
    duplicates: int
    duplicate_pairs: list[tuple[str, str]]
    overlap: dict[str, int]
    overlap_pairs: list[tuple[str, str]]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    uncut_quantiles: dict[str, int] = field(default_factory=dict)
    contradictions: int | None = None
    contradicting_pairs: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: `counts` and `examples` as DESIGN.md has them, and the rest beside them."""
        return asdict(self)


def inspect_data(data: PreparedData, tokenizer: Any, task: TaskName, *, rows: int, max_length: int) -> Inspection:
    """Look at prepared data.

    Args:
        rows: how many training rows to show.
        max_length: the limit that the rows were held to.
    """
    train = _stored(data.train)
    lengths = data.train.lengths
    duplicates, duplicate_pairs = _duplicates(train)
    overlap, overlap_pairs = _overlap(train, data.validation)
    contradicting = _contradictions(train) if task_info(task).rows == "preferences" else None
    counts: dict[str, int] = asdict(data.report.counts)
    return Inspection(
        data.report.as_dict(),
        counts,
        max_length,
        [show(row, tokenizer, task, data.labels) for row in _first(data.train, rows)],
        histogram(lengths),
        _quantiles(lengths),
        duplicates,
        duplicate_pairs,
        overlap,
        overlap_pairs,
        _balance(data),
        _quantiles(train.store.raw("length")),
        None if contradicting is None else len(contradicting),
        (contradicting or [])[:LISTED],
    )


def _quantiles(lengths: npt.NDArray[np.int32]) -> dict[str, int]:
    found = np.quantile(lengths, [0.0, 0.5, 0.95, 1.0]).astype(int).tolist() if len(lengths) else [0] * 4
    return dict(zip(("shortest", "median", "p95", "longest"), found, strict=True))


def show(row: Row, tokenizer: Any, task: TaskName, labels: LabelSpec | None) -> Example:
    """Return a row token by token."""
    special = special_ids(tokenizer)
    texts = token_texts(row.input_ids.tolist(), tokenizer)
    per_token: list[int] = [IGNORED] * len(texts)
    own: str | None = None
    info = task_info(task)
    if info.labels_tokens and isinstance(row.labels, np.ndarray):
        per_token = row.labels.tolist()
    elif labels is not None:
        own = _row_label(row, labels)
    worse = [False] * len(texts)
    if info.rows == "preferences" and row.token_type_ids is not None:
        worse = (row.token_type_ids > 0).tolist()
    if info.rows == "preferences" and len(set(worse)) == 1:
        own = "bad answer" if worse[0] else "good answer"
    tokens = []
    for text, number, label, rejected in zip(texts, row.input_ids.tolist(), per_token, worse, strict=True):
        tag = labels.names[label] if labels and info.labels_tokens and label != IGNORED else None
        tokens.append(Token(text, label != IGNORED, number in special, tag, rejected))
    if info.rows == "pairs" and isinstance(row.labels, np.ndarray):
        target = row.labels[row.labels != IGNORED].tolist()
        tokens += [Token(t, True, n in special) for t, n in zip(token_texts(target, tokenizer), target, strict=True)]
    return Example(row.source, row.row, tokens, own)


def special_ids(tokenizer: Any) -> set[int]:
    """Return the tokens that are no text: BOS and the like, and every added token that is marked as special."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text that each token adds; together they are the decoded row.

    A character of several tokens stands at its last one, the others are empty.
    """
    out: list[str] = []
    done = 0  # tokens whose text is out
    for place in range(len(ids)):
        start = max(0, done - CONTEXT)
        before = _decode(ids[start:done], tokenizer)
        text = _decode(ids[start : place + 1], tokenizer)
        if text.endswith("�") and place + 1 < len(ids):
            out.append("")
            continue
        out.append(text[len(before) :] if text.startswith(before) else _decode(ids[done : place + 1], tokenizer))
        done = place + 1
    return out


def histogram(lengths: npt.NDArray[np.int32], bins: int = BINS) -> list[tuple[int, int, int]]:
    """Return (first, last, rows) of bars of equal width over some lengths."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // bins))
    places = (lengths.astype(np.int64) - low) // width
    counts = np.bincount(places)
    return [(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    if not len(ids):
        return ""
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _stored(rows: RowSet) -> StoredRows:
    inner = stored_rows(rows)
    assert inner is not None  # streams are prepared like any file for an inspection
    return inner


def _first(rows: RowSet, count: int) -> list[Row]:
    """Return some of the first rows, in their order; where each has one label, of as many labels as possible."""
    found = [rows[number] for number in range(min(max(count, _LOOKED_AT), len(rows)))]
    first_of: dict[int, int] = {}
    for number, row in enumerate(found):
        if isinstance(row.labels, int):
            first_of.setdefault(row.labels, number)
    chosen = [*dict.fromkeys([*first_of.values(), *range(len(found))])][:count]
    return [found[number] for number in sorted(chosen)]


def _row_label(row: Row, labels: LabelSpec) -> str | None:
    if isinstance(row.labels, np.ndarray):
        return ", ".join(labels.names[number] for number in np.flatnonzero(row.labels)) or "(none)"
    if isinstance(row.labels, int):
        return labels.names[row.labels]
    return None if row.labels is None else f"{row.labels:g}"


def _place(rows: StoredRows, index: int) -> str:
    source, number = rows.store.place(int(rows.index[index]))
    return f"{source}:{number}"


def _duplicates(train: StoredRows) -> tuple[int, list[tuple[str, str]]]:
    # weights repeat rows on purpose: only different rows of the files count
    digest = train.store.digest[np.unique(train.index)]
    once = StoredRows(train.store, np.unique(train.index), None)
    _, first, inverse = np.unique(digest, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(digest)))
    pairs = [(_place(once, int(first[inverse[i]])), _place(once, int(i))) for i in again[:LISTED]]
    return len(again), pairs


def _contradictions(train: StoredRows) -> list[tuple[str, str]]:
    """Return each preference that an earlier one has the other way round, behind the first such."""
    once = StoredRows(train.store, np.unique(train.index), None)
    seen: dict[tuple[bytes, ...], int] = {}
    found = []
    for index, row in enumerate(once):
        sides = [hashlib.blake2b(side.input_ids.tobytes(), digest_size=16).digest() for side in sequences_of(row)]
        good = row.token_type_ids is None or not row.token_type_ids[0]
        if len(sides) == 1:  # a single answer: nothing stands on the other side
            sides = [*sides, b""] if good else [b"", *sides]
        if (twin := seen.get((sides[1], sides[0]))) is not None:
            found.append((_place(once, twin), _place(once, index)))
        seen.setdefault((sides[0], sides[1]), index)
    return found


def _overlap(train: StoredRows, validation: dict[str, RowSet]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    mine = train.store.digest[train.index]
    order = np.argsort(mine, kind="stable")
    pairs: list[tuple[str, str]] = []
    shared = shared_rows(train, validation)
    for name, positions in shared.items():
        theirs = _stored(validation[name])
        for index in positions[: LISTED - len(pairs)].tolist():
            digest = theirs.store.digest[theirs.index[index]]
            twin = int(order[np.searchsorted(mine[order], digest)])
            pairs.append((_place(train, twin), _place(theirs, index)))
    return {name: len(positions) for name, positions in shared.items()}, pairs


def _balance(data: PreparedData) -> dict[str, dict[str, int]]:
    """Return how often each label occurs in each set; nothing for numbers and language models."""
    spec = data.labels
    if spec is None or spec.problem == "regression":
        return {}
    sets = {
        "train": _stored(data.train),
        **{name or "validation": _stored(rows) for name, rows in data.validation.items()},
    }
    out = {}
    for name, rows in sets.items():
        counts = rows.label_counts()
        out[name] = {label: int(counts[number]) for number, label in enumerate(spec.names)}
    return out
