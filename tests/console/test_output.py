"""How numbers and documents are printed."""

from __future__ import annotations

import json

import pytest

from peftcli.console.output import print_json
from peftcli.record.shown_numbers import byte_size, duration, figures, metric, short_count


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (149_381, "149.4K"),
        (999_960, "1.0M"),
        (22_713_221, "22.7M"),
        (175e9, "175.0B"),
    ],
)
def test_short_count(number: float, text: str) -> None:
    assert short_count(int(number)) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (72, "1 min 12 s"), (7500, "2 h 05 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(612, "612 B"), (999_960, "1.0 MB"), (1_240_000, "1.2 MB"), (3e12, "3.0 TB")]
)
def test_byte_size(number: float, text: str) -> None:
    assert byte_size(number) == text


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (0.3994, 3, "0.399"),
        (21.94, 3, "21.9"),
        (999.6, 3, "1,000"),
        (1718.6, 3, "1,719"),
        (240.4, 2, "240"),
        (0, 3, "0"),
    ],
)
def test_digits_of_large_numbers_need_no_exponent(number: float, digits: int, text: str) -> None:
    assert figures(number, digits) == text


def test_metrics_that_are_shares_read_as_percentages() -> None:
    assert metric("eval_accuracy", 0.9753) == "97.5%"
    assert metric("eval_loss", 0.9753) == "0.9753"
    assert metric("eval_rows", 12_445) == "12,445"
    assert [metric("eval_loss", x) for x in (10.7, 1.6, 50_110.2, 1.5e-5)] == ["10.70", "1.600", "50,110", "1.500e-05"]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("nan"), "list": [float("inf"), 1], "name": "é"})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "list": [None, 1], "name": "é"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("eval_accuracy", "40.0%"),
        ("eval_news_f1_macro", "40.0%"),
        ("token_accuracy", "40.0%"),
        ("eval_recall_2024_loss", "0.4000"),
        ("eval_f1_teams_rougeL", "0.4000"),
    ],
)
def test_shares_are_told_by_the_metric_and_not_by_the_name_of_a_set(name: str, shown: str) -> None:
    assert metric(name, 0.4) == shown


def test_what_takes_more_memory_does_not_save_a_negative_amount(capsys: pytest.CaptureFixture[str]) -> None:
    from peftcli.analysis.estimate.memory_options import Option
    from peftcli.console.estimate_view import print_options

    settings = [
        Option("lora", "", 10**9, 0, True),
        Option("lora", "model.load_in_4bit=true", 11 * 10**8, -(10**8), True),
    ]
    print_options(settings, [Option("ia3", "method.name=ia3", 9 * 10**8, 10**8, True)], 2 * 10**9)
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split() for line in lines if line.startswith(("model.load_in_4bit", "ia3"))]
    assert [cell[-4:-1] for cell in cells] == [["100.0", "MB", "more"], ["MB", "100.0", "MB"]]
