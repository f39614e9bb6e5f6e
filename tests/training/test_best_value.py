"""Which evaluation is the best, case by case."""

from __future__ import annotations

import math

import pytest

from peftcli.training.best_value import Verdict, judge
from peftcli.training.run import train
from tests.training.test_every_method import ADALORA

NAN = math.nan
KEPT, WORSE, SLIGHT, WAITS, FIRST_FORM = (
    Verdict(keep=True, improved=True, counts=True),
    Verdict(keep=False, improved=False, counts=True),
    Verdict(keep=True, improved=False, counts=True),
    Verdict(keep=False, improved=False, counts=False),
    Verdict(keep=True, improved=True, counts=False),
)


@pytest.mark.parametrize(
    ("value", "best", "options", "verdict"),
    [
        (2.0, None, {}, KEPT),
        (1.0, 2.0, {}, KEPT),
        (2.0, 1.0, {}, WORSE),
        (2.0, 2.0, {}, WORSE),
        (2.0, 1.0, {"greater": True}, KEPT),
        (1.9, 2.0, {"threshold": 0.5}, SLIGHT),
        # no number
        (NAN, 2.0, {}, WORSE),
        (NAN, None, {}, SLIGHT),  # nothing better is known: the latest adapter is kept
        (9.0, NAN, {}, KEPT),
        (9.0, NAN, {"greater": True}, KEPT),
        # ranks above the budget
        (1.0, None, {"settled": False, "best_settled": False}, FIRST_FORM),
        (3.0, 2.0, {"settled": False, "best_settled": False}, WAITS),
        (9.0, 2.0, {"best_settled": False}, KEPT),
        (NAN, 2.0, {"best_settled": False}, WORSE),
    ],
)
def test_the_verdict(value: float, best: float | None, options: dict[str, object], verdict: Verdict) -> None:
    words = {"greater": False, "threshold": 0.0, "settled": True, "best_settled": True, **options}
    assert judge(value, best, **words) == verdict


def test_early_stopping_waits_until_ranks_are_settled(recipe, recorder) -> None:
    """Every evaluation is worse than the one before; patience 1 would stop at step 2, with ranks above the budget."""
    loaded = recipe(method=ADALORA, data__val_set_size=4, training__max_steps=8, training__eval_steps=1,
                    training__learning_rate=3.0, training__early_stopping_patience=1,
                    training__early_stopping_threshold=1e6)  # fmt: skip
    summary = train(loaded, reporter=recorder)
    settled = 8 - max(1, round(0.3 * 8)) + 1
    assert summary.stopped_early and summary.steps >= settled
    assert summary.best_step >= settled


def test_an_undefined_metric_is_never_the_best(recipe, monkeypatch) -> None:
    from peftcli.inference.evaluator import Evaluation
    from peftcli.training.session import Session

    values = iter([5.0, NAN, 0.1, 0.4, NAN, 0.3])
    monkeypatch.setattr(
        Session, "evaluate", lambda _self, _stop=None: Evaluation({"eval_token_accuracy": next(values)}, [])
    )
    summary = train(recipe(data__val_set_size=4, training__max_steps=5, training__eval_steps=1,
                           training__metric_for_best_model="eval_token_accuracy"))  # fmt: skip
    assert summary.best_step == 3 and summary.eval == {"eval_token_accuracy": 0.4}
