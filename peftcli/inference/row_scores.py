"""What each held-out row adds to the metrics: kept by a study, so that methods are compared on the same rows.

Metrics of the set are functions of its rows (`studies.evidence.metric_sums`), so that they can be computed again for
rows that are drawn anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.data.rows.row_set import RowSet
from peftcli.errors import UserError
from peftcli.inference.evaluate_run import open_untrained, rows_of_recipe, rows_of_run
from peftcli.inference.evaluator import EvaluatedRow
from peftcli.inference.general_text import GENERAL_TEXT, general_rows
from peftcli.inference.open_run import Opening, open_run
from peftcli.inference.opened_run import OpenedRun
from peftcli.recipe.load_recipe import LoadedRecipe

VERSION = 2
"""Of the written form. Generated texts of version 1 can go on behind the end of a turn; all else is the same."""


@dataclass(frozen=True)
class GeneralScores:
    """Losses on held-out general text, which the training data do not resemble: what was forgotten shows there.

    Args:
        text: what it is, in words.
        identity: a hash of its tokens.
        loss_sums, counts: by row.
    """

    text: str
    identity: str
    loss_sums: list[float]
    counts: list[float]


@dataclass(frozen=True)
class RowScores:
    """One run's scores by held-out row, in the order of the rows; all lists are equally long.

    Args:
        kind: of the predictions, which says what metrics apply: `tasks.metric_table`.
        seed: of the run; None where no seed had a part in it: the untrained base of a task without a head.
        sets: names of the validation sets, "" for the only one, with how many rows each has.
        identity: a hash of all tokens and labels. Rows of two runs may be paired where it is the same.
        sources: files of the rows; `places`: for each row the number of its file here, and its line or element there.
            Several rows of one place are parts of one long row.
        loss_sums, counts: the plain loss is the quotient of their sums.
        right: right tokens, where `token_accuracy` is asked for.
        predictions, references: where a metric needs them: class numbers, lists of 0 and 1, numbers, tags, texts.
        general: of language models.
    """

    kind: str
    seed: int | None
    sets: dict[str, int]
    identity: str
    sources: list[str]
    places: list[list[int]]
    loss_sums: list[float]
    counts: list[float]
    right: list[float] | None = None
    predictions: list[Any] | None = None
    references: list[Any] | None = None
    general: GeneralScores | None = None
    version: int = field(default=VERSION)

    def __len__(self) -> int:
        return len(self.loss_sums)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> RowScores:
        """Return what `as_dict` gave.

        Raises:
            UserError: it was written by another version, or is damaged.
        """
        if not isinstance(data, Mapping):
            raise _damaged("is no object")
        try:
            texts = any(isinstance(one, str) for one in data.get("predictions") or ())
            known: dict[str, Any] = {name: _with_gaps(value) for name, value in data.items()}
            if data.get("version") not in ((VERSION,) if texts else (1, VERSION)):
                raise _damaged(f"has the format {data.get('version')!r}, and this version reads {VERSION}")
            general = known.pop("general")
            found = cls(**known, general=None if general is None else GeneralScores(**general))
            lists: list[list[Any] | None] = [
                found.loss_sums,
                found.counts,
                found.places,
                found.right,
                found.predictions,
                found.references,
            ]
            numbers = [value for column in (found.loss_sums, found.counts, found.right or []) for value in column]
            whole = {len(column) for column in lists if column is not None} == {sum(found.sets.values())}
        except (TypeError, KeyError, AttributeError) as error:
            raise _damaged("lacks keys, or holds values of another kind") from error
        if not whole or not all(isinstance(value, int | float) for value in numbers):
            raise _damaged("holds lists of different lengths, or numbers that are none")
        return found


def _damaged(reason: str) -> UserError:
    return UserError(
        f"the file of these scores {reason}", suggestion="remove the file, and the study computes it again"
    )


def _with_gaps(value: Any) -> Any:
    """Return what a file holds with NaN for each null in a list: JSON has no other word for a number that is none."""
    if isinstance(value, list):
        return [float("nan") if item is None else _with_gaps(item) for item in value]
    return {key: _with_gaps(item) for key, item in value.items()} if isinstance(value, dict) else value


def score_rows(run: Path | str, checkpoint: str | None = None, general_text: Path | None = None) -> RowScores:
    """Return the scores of a run's own validation rows; their totals are what `peft eval RUN` prints.

    All of them are scored, also where the run evaluated on some (`data.max_eval_rows`).

    Args:
        checkpoint: use this one (`checkpoint_adapter`), not the result of the finished run.
        general_text: rows of general text; None is the text in the package.

    Raises:
        UserError: anything about the run or its data is wrong, or it has no validation rows.
    """
    opened = _on_all_rows(open_run(run, Opening(checkpoint=checkpoint)))
    sets = rows_of_run(opened, Path(run), lambda _text: None)
    return _scores(opened, sets, opened.recipe.seed, general_text)


def _on_all_rows(run: OpenedRun) -> OpenedRun:
    recipe = run.recipe
    if recipe.data is None or recipe.data.max_eval_rows is None:
        return run
    data = recipe.data.model_copy(update={"max_eval_rows": None})
    return replace(run, loaded=replace(run.loaded, recipe=recipe.model_copy(update={"data": data})))


def score_base(loaded: LoadedRecipe, general_text: Path | None = None) -> RowScores:
    """Return the scores of a recipe's validation rows with its base as it is before training.

    A new head is drawn by the recipe's seed.

    Raises:
        UserError: anything about the model or the data is wrong, or there are no validation rows.
    """
    opened, prepared = open_untrained(loaded)
    sets = rows_of_recipe(opened, prepared, lambda _text: None)
    drawn = opened.task.info.has_labels
    return _scores(opened, sets, loaded.recipe.seed if drawn else None, general_text)


def _scores(run: OpenedRun, sets: Mapping[str, RowSet], seed: int | None, general_text: Path | None) -> RowScores:
    found = [row for rows in run.evaluate_rows(sets).values() for row in rows]
    sources, places = _places(sets)
    predicted = any(row.prediction is not None for row in found)
    return RowScores(
        kind=run.task.metric_kind,
        seed=seed,
        sets={name: len(rows) for name, rows in sets.items()},
        identity=identity_of(sets),
        sources=sources,
        places=places,
        loss_sums=[_short(row.loss_sum) for row in found],
        counts=[row.count for row in found],
        right=[row.right or 0.0 for row in found] if any(row.right is not None for row in found) else None,
        predictions=[row.prediction for row in found] if predicted else None,
        references=[row.reference for row in found] if predicted else None,
        general=_general(run, general_text),
    )


def _general(run: OpenedRun, file: Path | None) -> GeneralScores | None:
    """Return the losses on general text; None for a task that does not continue texts."""
    if run.task.info.rows != "text":
        return None
    rows = general_rows(run, file)
    found: list[EvaluatedRow] = run.evaluate_losses(rows)
    losses, counts = [_short(row.loss_sum) for row in found], [row.count for row in found]
    return GeneralScores(GENERAL_TEXT if file is None else str(file), identity_of({"": rows}), losses, counts)


def identity_of(sets: Mapping[str, RowSet]) -> str:
    """Return a hash of every token and label, and of where sets and rows end."""
    found = hashlib.blake2b(digest_size=16)
    for name, rows in sets.items():
        found.update(f"{name}:{len(rows)};".encode())
        for row in rows:
            ids = np.asarray(row.input_ids)
            labels = np.asarray(row.labels if row.labels is not None else ())
            found.update(f"{ids.size},{labels.size};".encode() + ids.tobytes() + labels.tobytes())
    return found.hexdigest()


def _places(sets: Mapping[str, RowSet]) -> tuple[list[str], list[list[int]]]:
    numbers: dict[str, int] = {}
    places = [[numbers.setdefault(row.source, len(numbers)), row.row] for rows in sets.values() for row in rows]
    return list(numbers), places


def _short(value: float) -> float:
    """Return a float32 number with the digits that it has."""
    return float(f"{value:.9g}")
