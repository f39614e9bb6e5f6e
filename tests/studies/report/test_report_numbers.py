"""Numbers of a report: no more digits than the interval supports."""

from __future__ import annotations

import pytest

from peftcli.studies.report.shell.report_numbers import ScoreScale, supported_decimals

ACCURACY, LOSS = ScoreScale("eval_accuracy", True), ScoreScale("eval_loss", False)


@pytest.mark.parametrize(
    ("scale", "value", "interval", "written"),
    [
        (ACCURACY, 0.9123, (0.892, 0.932), "91%"),  # two points of noise carry no tenth
        (ACCURACY, 0.9123, (0.9093, 0.9153), "91.2%"),
        (ACCURACY, 0.9123, (0.81, 0.97), "91%"),
        (LOSS, 1.41267, (1.39, 1.43), "1.41"),
        (LOSS, 1.41267, (1.0, 1.9), "1.4"),
        (LOSS, 1.41267, None, "1.41"),
        (ACCURACY, 1.0, (1.0, 1.0), "100.0%"),
        (ACCURACY, float("nan"), None, ""),
    ],
)
def test_a_score_has_the_digits_that_its_interval_supports(
    scale: ScoreScale, value: float, interval: tuple[float, float] | None, written: str
) -> None:
    assert scale.score(value, interval) == written


def test_an_interval_without_zero_is_not_written_as_if_it_held_it() -> None:
    assert ACCURACY.difference(0.016, (0.004, 0.028)) == ("1.6 points", "0.4 to 2.8")
    assert ACCURACY.difference(0.03, (0.02, 0.04)) == ("3 points", "2 to 4")
    assert ACCURACY.difference(0.01, (-0.0001, 0.02)) == ("1 point", "0 to 2")


def test_decimals_follow_the_half_width() -> None:
    assert [supported_decimals((0.0, 2 * half)) for half in (20, 1, 0.5, 0.1, 0.02, 1e-9)] == [0, 0, 1, 1, 2, 5]
    assert supported_decimals(None) is None and supported_decimals((1.0, float("inf"))) is None
