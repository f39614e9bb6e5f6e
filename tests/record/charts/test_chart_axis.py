"""An axis holds its values and writes round numbers beside them."""

from __future__ import annotations

import pytest

from peftcli.record.charts.chart_axis import linear_axis, log_axis, short_number


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [5.0], [0.0], [-3.0, 7e9], [1e-9, 2e-9], [0.861, 0.926], [1e300, 2e300], []]
)
def test_values_lie_on_it_and_ticks_are_in_order(values: list[float]) -> None:
    for axis in (linear_axis("x", values), log_axis("x", values), linear_axis("x", values, from_zero=True)):
        held = [value for value in values if value > 0] if axis.log else values
        assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in held)
        ticks = [value for value, _ in axis.ticks]
        assert ticks == sorted(ticks) and len(ticks) <= 12
        assert all(axis.low <= value <= axis.high for value in ticks)
        assert len({text for _, text in axis.ticks}) == len(ticks)


def test_steps_of_a_run_are_whole_and_thousands_are_parted() -> None:
    assert [text for _, text in linear_axis("optimizer steps", [0, 6, 12]).ticks] == ["0", "5", "10"]
    assert [text for _, text in linear_axis("optimizer steps", [0, 2]).ticks] == ["0", "1", "2"]
    assert [text for _, text in linear_axis("hours", [0.1, 11.2]).ticks] == ["0.0", "2.5", "5.0", "7.5", "10.0"]
    assert [text for _, text in linear_axis("perplexity", [44_221.5, 50_112.0]).ticks][-1] == "50,000"


def test_a_logarithmic_axis_gives_equal_ratios_equal_room() -> None:
    axis = log_axis("trained parameters", [770, 22_713_986])
    assert [text for _, text in axis.ticks] == ["1k", "10k", "100k", "1M", "10M"]
    assert axis.share(10_000) - axis.share(1_000) == pytest.approx(axis.share(100_000) - axis.share(10_000))


def test_numbers_are_short() -> None:
    assert [short_number(value) for value in (0, 812, 149_000, 2.2e7, 0.02, 2e-3, 3e-5)] == [
        *("0", "812", "149k", "22M", "0.02", "2e-3", "3e-5")
    ]
