"""Which batches of a run take most memory: those of its own steps, cut as training cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from peftcli.data.rows.batching import epoch_batches
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.micro_batches import Lengths, longest_first, micro_batches, split_by_tokens
from peftcli.data.rows.referenced_rows import others_of
from peftcli.data.rows.row_set import Row, RowSet, StoredRows
from peftcli.inference.evaluator import EVAL_BATCH_TOKENS
from peftcli.recipe.preference_losses import takes_single_answers
from peftcli.recipe.schema import Recipe
from peftcli.training.step_plan import StepPlan

STEPS = 5000
"""Steps of the first epoch that are looked at: enough to meet the longest rows together."""


def step_sizes(
    recipe: Recipe, rows: RowSet, lengths: Lengths, plan: StepPlan, limit: int | None, joined: bool
) -> list[list[list[int]]]:
    """Return the micro-batches of each step of the first epoch, as numbers of rows.

    Args:
        lengths: tokens that each row takes in a micro-batch.
        limit: tokens of a micro-batch at most.
        joined: whether rows are put behind each other.
    """
    spec = recipe.training
    sampling = spec.train_sampling_strategy
    steps = epoch_batches(rows, plan.step_rows, seed=recipe.seed, epoch=0, sampling=sampling)
    size = spec.per_device_train_batch_size
    return [
        micro_batches(longest_first(numbers, lengths), lengths, batch_size=size, max_tokens=limit, joined=joined)
        for numbers in islice(steps, min(plan.total_steps, STEPS))
    ]


def largest(
    lengths: Lengths, steps: Sequence[list[list[int]]], joined: bool, targets: Lengths | None = None
) -> tuple[int, list[list[int]]]:
    """Return the index of the step with the largest micro-batch, and its largest micro-batches: two at most.

    Args:
        targets: tokens that a decoder reads of each row, where it has an input of its own.
    """

    def tokens(numbers: list[int]) -> tuple[int, int]:
        own = [int(lengths[number]) for number in numbers]
        decoded = 0 if targets is None else max(int(targets[number]) for number in numbers)
        return (sum(own) if joined else (max(own) + decoded) * len(own)), max(own)

    index = max(range(len(steps)), key=lambda step: max(tokens(numbers) for numbers in steps[step]))
    return index, sorted(steps[index], key=tokens, reverse=True)[:2]


def target_lengths(rows: RowSet) -> Lengths | None:
    """Return the tokens of each row's target; None where the rows have none beside what is read."""
    if not isinstance(rows, StoredRows) or rows.spec is not None or rows.store.labels is None:
        return None
    return rows.target_lengths


def look_ahead_rows(recipe: Recipe, rows: RowSet, steps: Sequence[list[list[int]]], limit: int | None) -> list[Row]:
    """Return the largest micro-batch of mismatched sequences that is looked at before a step; none without them.

    Args:
        limit: tokens of a micro-batch at most.
    """
    if (others := _others(recipe, rows)) is None:
        return []
    lengths, size = others.lengths, recipe.training.per_device_train_batch_size
    first = [
        split_by_tokens(longest_first([n for each in step for n in each], lengths), lengths, size, limit)[0]
        for step in steps
    ]
    numbers = max(first, key=lambda batch: (int(lengths[batch[0]]) * len(batch), -batch[0]))
    return [others[number] for number in numbers]


def _others(recipe: Recipe, rows: RowSet) -> RowSet | None:
    """Return the mismatched sequences of rows; where these have none yet, their own stand for them."""
    if not takes_single_answers(recipe.training):
        return None
    found = others_of(rows)
    return rows if found is None else found


def shapes(lengths: Lengths, steps: Sequence[list[list[int]]], joined: bool) -> int:
    """Return how many shapes the micro-batches have: tokens of joined rows, else rows and the tokens of the longest."""
    each = [[int(lengths[number]) for number in numbers] for step in steps for numbers in step]
    return len({(1, sum(own)) if joined else (len(own), max(own)) for own in each})


def evaluation_rows(
    recipe: Recipe, rows: RowSet | None, collator: Collator, device_type: str
) -> tuple[list[Row], list[Row]]:
    """Return the rows of an evaluation's first batch, which is the largest, and of that of its mismatched sequences."""
    if rows is None:
        return [], []
    size, limit = recipe.training.per_device_eval_batch_size, EVAL_BATCH_TOKENS.get(device_type)

    def first(some: RowSet) -> list[Row]:
        lengths = collator.lengths(some)
        cut = split_by_tokens(longest_first(range(len(some)), lengths), lengths, size, limit)
        return [some[number] for number in cut[0]] if cut else []

    others = _others(recipe, rows)
    return first(rows), [] if others is None else first(others)
