"""What is said at the end of a run that made the model worse."""

from __future__ import annotations

import pytest

from peftcli.training.watch.outcome_notes import outcome_notes

FALLING = [2.0, 1.5, 1.0]


@pytest.mark.parametrize(
    ("before", "after", "by", "greater", "says"),
    [
        (1.6, 1.2, "eval_loss", False, None),
        (1.6, 68.4, "eval_loss", False, "eval_loss 1.600 before, 68.40 at best"),
        (1.6, 1.6, "eval_loss", False, "no evaluation was better"),
        (0.4, 0.9, "eval_accuracy", True, None),
        (0.9, 0.4, "eval_accuracy", True, "no evaluation was better"),
        (float("nan"), 0.4, "eval_f1", True, None),  # undefined before: nothing to compare with
    ],
)
def test_the_kept_evaluation_is_compared_with_the_first_one(
    before: float, after: float, by: str, greater: bool, says: str | None
) -> None:
    notes = outcome_notes({by: before}, {by: after}, by=by, greater=greater, losses=FALLING)
    assert not notes if says is None else says in notes[0] and "training.learning_rate" in notes[0]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([], None),
        ([1.6], None),
        (FALLING, None),
        ([1.0, 0.9, 1.3], None),  # rows differ: a third more is no sign
        ([0.01, 0.05], None),  # near zero, a multiple is no sign
        ([1.6, 198.4, 953.3, *[68.4] * 10], "rose from 1.600 to 68.40"),
        ([1.6, 9.0, 9.0, *[1.5] * 10], None),  # it came back
    ],
)
def test_without_evaluations_the_training_loss_is_looked_at(losses: list[float], says: str | None) -> None:
    notes = outcome_notes(None, None, by="eval_loss", greater=False, losses=losses)
    assert not notes if says is None else says in notes[0]
