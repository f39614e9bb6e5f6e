"""report.html of a sweep: the answer first, the winner on fresh seeds, every trial with its state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peftcli.studies.report.sweep_page import sweep_report
from peftcli.studies.report.written_report import report_of
from peftcli.studies.sweep.sweep_record import Sweep, SweepBest, SweepTrial
from tests.studies.report.pages import checked
from tests.studies.report.records import example_sweep


def mixed() -> Sweep:
    """Return a sweep over values of every kind: lists, null, text, and a key that some trials lack."""
    values: list[dict[str, object]] = [
        {"method.target_modules": ["attn.q", "<b>"], "method.alpha": None, "data.path": "a"},
        {"method.target_modules": ["attn.v"], "method.alpha": 1, "method.name": "<script>"},
        {"method.target_modules": ["attn.v"], "method.alpha": 0},
    ]
    keys = {key: "?" for each in values for key in each}
    trials = [SweepTrial(index, each, 0.5, "finished") for index, each in enumerate(values)]
    return Sweep("eval_loss", False, keys, trials, importance={"method.alpha": 1.0})


ODD: dict[str, Callable[[], Sweep]] = {
    "nothing": lambda: Sweep("eval_loss", False, {}, []),
    "all failed": lambda: Sweep(
        "eval_loss", False, {"method.r": "4,8"}, [SweepTrial(0, {"method.r": 4}, None, "failed", reason="<i>")]
    ),
    "one trial": lambda: Sweep(
        "eval_loss", False, {"method.r": "4"}, [SweepTrial(0, {"method.r": 4}, 0.0, "finished")],
        best=SweepBest({"method.r": 4}, 0.0, (0.0, 0.0), ""),
    ),
    "mixed values": mixed,
    "the example": example_sweep,
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_every_record_becomes_a_whole_page(name: str) -> None:
    record = ODD[name]()
    page, figures = sweep_report(record)
    checked(page)
    assert "<script>alert" not in page and "<i>" not in page and "<b>&" not in page
    assert page.partition('id="trials"')[2].partition("<tbody>")[2].partition("</tbody>")[0].count("<tr>") == len(
        record.trials
    )
    for figure in figures:
        ElementTree.fromstring(figure.file())


def test_the_answer_comes_first_and_the_score_is_that_of_fresh_seeds() -> None:
    text = checked(sweep_report(example_sweep())[0]).text
    assert text.index("The smallest rank that ties with the best") < text.index("The winner")
    assert "scores 91% on 3 fresh seeds (95% interval 90% to 92%)" in text
    assert "failed the loss was not finite at step 31" in text


def test_each_key_has_a_figure_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(example_sweep().as_dict()), encoding="utf-8")
    written = report_of(tmp_path)
    assert [path.name for path in written] == [
        *(
            "report.html",
            "report.md",
            "importance.svg",
            "score-by-key-1.svg",
            "score-by-key-2.svg",
            "score-by-key-3.svg",
        ),
        "score-by-trial.svg",
    ]
    rate, rank, choice = (written[index].read_text(encoding="utf-8") for index in (3, 4, 5))
    assert ">1e-4<" in rate and ">16<" in rank and ">true<" in choice
