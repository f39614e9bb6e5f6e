"""Prepared preferences as the recipe's loss reads them: pairs, or single answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from peftcli.data.overlap import stored_rows
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import RowSet, StoredRows
from peftcli.data.rows.single_answers import SingleAnswers
from peftcli.errors import Problem, UserError
from peftcli.recipe.preference_losses import DEFAULT_LOSS, PREFERENCE_LOSSES, preference_loss, takes_single_answers
from peftcli.recipe.schema import Recipe, TrainingSpec
from peftcli.tasks.task_table import task_info


def as_loss_reads(data: PreparedData, recipe: Recipe, max_length: int) -> PreparedData:
    """Return the data of a recipe with single answers where its loss takes each by itself; other data as they are.

    Args:
        max_length: tokens of a sequence at most.

    Raises:
        UserError: the loss compares pairs, and a row has one answer; or it takes single answers, and all are good, or
            all are bad.
    """
    train = rows_of_loss(data.train, recipe, max_length)
    validation = {name: rows_of_loss(rows, recipe, max_length) for name, rows in data.validation.items()}
    if not isinstance(train, SingleAnswers):
        return data
    good = int(train.good.sum())
    bad = len(train) - good
    if not good or not bad:
        raise UserError(_one_kind(train, "good" if good else "bad"))
    report = replace(
        data.report,
        train_rows=len(train),
        validation_rows={name: len(rows) for name, rows in validation.items()},
        longest=int(train.lengths.max()),
        notes=[*data.report.notes, *_weights_note(recipe.training, good, bad)],
    )
    return replace(data, train=train, validation=validation, report=report)


def rows_of_loss(rows: RowSet, recipe: Recipe, max_length: int) -> RowSet:
    """Return a set of rows as the recipe's loss reads them.

    Raises:
        UserError: the loss compares pairs, and a row has one answer.
    """
    stored = stored_rows(rows)
    if task_info(recipe.task).rows != "preferences" or stored is None:
        return rows
    if takes_single_answers(recipe.training):
        return SingleAnswers(stored, max_length)
    _check_pairs(stored, recipe.training)
    return rows


def _check_pairs(rows: StoredRows, training: TrainingSpec) -> None:
    types = rows.store.types
    if types is None or not len(rows):
        return
    offsets = np.asarray(rows.store.offsets)
    single = np.flatnonzero(types[offsets[rows.index]] == types[offsets[rows.index + 1] - 1])
    if len(single):
        source, number = rows.store.place(int(rows.index[single[0]]))
        able = " or ".join(name for name, info in PREFERENCE_LOSSES.items() if info.unpaired)
        loss = training.loss_type or DEFAULT_LOSS
        text = f"this row has one answer with a label, and the loss {loss} compares two answers to a prompt"
        remedy = f"write training.loss_type: {able}, or give rows with chosen and rejected"
        raise UserError(Problem(text, file=source, line=number, suggestion=remedy))


def _one_kind(train: SingleAnswers, kind: str) -> Problem:
    other = "bad (label: false)" if kind == "good" else "good (label: true)"
    first = train[0]
    return Problem(
        f"all {len(train):,} training rows are {kind} answers; the loss weighs good ones against bad ones",
        file=first.source,
        suggestion=f"add rows that are {other}; to learn good answers alone, write task: causal_lm",
    )


def _weights_note(training: TrainingSpec, good: int, bad: int) -> list[str]:
    """Return a note where the weights leave one kind far behind.

    The weighted good answers should be 1 to 4/3 times the weighted bad ones (Ethayarajh et al. 2024, section 4.2).
    """
    loss = preference_loss(training)
    share = loss.desirable_weight * good / (loss.undesirable_weight * bad)
    if 0.99 <= share <= 1.34 or good == bad:
        return []
    least = loss.undesirable_weight * bad / good
    return [
        f"{good:,} good and {bad:,} bad answers: the loss's authors advise a training.desirable_weight between "
        f"{least:.3g} and {least * 4 / 3:.3g} for these"
    ]
