"""Which rows of a store are trained on and which are evaluated: split, labels that are known, limit, weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from peftcli.data.read.records import BadRow
from peftcli.data.rows.split import split_rows, validation_count
from peftcli.data.store.labels import Kind, LabelSpec
from peftcli.data.store.stored_labels import names_of, rows_of_raw, rows_with_other_names
from peftcli.data.store.token_store import Store
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSpec

Index = npt.NDArray[np.int64]
"""Numbers of rows of a store, in order."""


def split_off(store: Store, spec: DataSpec, kind: Kind | None, seed: int) -> tuple[Index, Index]:
    """Return the rows to train on and those split off to evaluate; the parts of one raw row stay together.

    Args:
        kind: kind of the labels, None without labels.
        seed: the split is the same for the same seed.
    """
    if spec.validation is not None or spec.val_set_size == 0:
        return np.arange(len(store), dtype=np.int64), np.empty(0, dtype=np.int64)
    # rule 1 split the rows that were left, so that another length limit or base had other validation rows
    raw = np.unique(store.origin) if spec.split_rule == 1 else np.arange(len(store.raw("status")), dtype=np.int64)
    single = kind == "single_label"
    stratified = single and spec.group_by is None if spec.stratify is None else spec.stratify
    classes = store.raw("class")[raw] if stratified else None
    groups = store.raw("group")[raw] if spec.group_by else None
    mine, theirs = split_rows(raw, spec.val_set_size, seed, classes=classes, groups=groups, source=spec.path)
    train, held_out = rows_of_raw(store, mine), rows_of_raw(store, theirs)
    if not len(train):
        text = "every row that is left was split off for validation, so that none is left to train on"
        raise UserError(Problem(text, key="data.val_set_size", suggestion="make it smaller, or 0 for no validation"))
    if kind in (None, "regression"):
        return train, held_out
    # a row whose label would then be unknown stays with the training rows
    unknown = rows_with_other_names(store, held_out, names_of(store, train))
    if len(unknown):
        moved = np.isin(store.origin[held_out], store.origin[unknown])
        train, held_out = np.sort(np.concatenate((train, held_out[moved]))), held_out[~moved]
    return train, held_out


def missing_rows_note(store: Store, spec: DataSpec, held_out: Index) -> list[str]:
    """Return a note where fewer rows are split off than the recipe asks for; groups are never parted, so they may."""
    if spec.validation is not None or not spec.val_set_size or spec.group_by:
        return []
    asked = validation_count(spec.val_set_size, len(store.raw("status")))
    given = len(np.unique(store.origin[held_out]))
    if given >= asked:
        return []
    return [
        f"data.val_set_size asks for {asked:,} validation rows, of which {given:,} can be split off: "
        "the others are needed to train (the last row of a class, the only rows of a label), or were left out"
    ]


def with_known_labels(store: Store, rows: Index, labels: LabelSpec | None) -> tuple[Index, list[BadRow]]:
    """Return the rows whose labels the model has, and what is wrong with each of the others."""
    if labels is None or labels.problem == "regression":
        return rows, []
    unknown = rows_with_other_names(store, rows, set(labels.names))
    if not len(unknown):
        return rows, []
    known = ", ".join(labels.names[:10]) + (", ..." if len(labels.names) > 10 else "")
    strange = []
    for row in unknown.tolist():
        source, number = store.place(row)
        names = sorted(names_of(store, np.array([row])) - set(labels.names))
        message = f"the label {', '.join(map(repr, names))} does not occur in training"
        strange.append(BadRow(source, number, message, expected=known))
    return rows[~np.isin(rows, unknown)], strange


def limited(store: Store, rows: Index, most: int | None, seed: int) -> Index:
    """Return the rows that were made of at most `most` raw rows, drawn by the seed."""
    raw = np.unique(store.origin[rows])
    if most is None or len(raw) <= most:
        return rows
    random = np.random.Generator(np.random.PCG64([seed, 0x11A17]))
    chosen = random.permutation(raw)[:most]
    return rows[np.isin(store.origin[rows], chosen)]


def weighted(store: Store, rows: Index, weights: Sequence[float], seed: int) -> Index:
    """Return the rows with each source as often as its weight says: 0.5 half of it, 2 every row twice.

    Raises:
        UserError: a weight leaves not a single row of its source.
    """
    if all(weight == 1 for weight in weights):
        return rows
    random = np.random.Generator(np.random.PCG64([seed, 0x3E16]))
    number_of_set = store.raw("set")[store.origin[rows]]
    parts = []
    for place, weight in enumerate(weights):
        mine = rows[number_of_set == place]
        rest = round((weight - int(weight)) * len(mine))
        if len(mine) and not rest and weight < 1:
            reason = f"a weight of {weight:g} leaves none of the {len(mine):,} training rows of this source"
            remedy = "write a larger weight, or leave the source out"
            raise UserError(Problem(reason, key=f"data.datasets.{place}.weight", suggestion=remedy))
        parts += [mine] * int(weight) + [np.sort(random.permutation(mine)[:rest])]
    return np.concatenate(parts)
