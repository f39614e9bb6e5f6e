"""report.html of a comparison: whatever the record holds, the page is whole, safe and says what the record says."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from peftcli.errors import UserError
from peftcli.record.step_lines import finite
from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Curve, RatePoint
from peftcli.studies.report.comparison_page import comparison_report
from peftcli.studies.report.study_record import read_study
from peftcli.studies.report.written_report import report_of, write_report
from tests.studies.report.pages import checked
from tests.studies.report.records import example_comparison, many_methods

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x1b]0;x\x07"


def bare(*methods: ComparedMethod, metric: str = "eval_loss") -> Comparison:
    """Return a comparison that knows nothing but its methods."""
    return Comparison("causal_lm", "m", "d", metric, metric != "eval_loss", 10, [0], list(methods))


def hostile() -> Comparison:
    """Return a comparison whose every text is an attack."""
    found = example_comparison()
    for name in ("task", "model", "data", "machine", "date", "command"):
        setattr(found, name, HOSTILE)
    found.summary, found.undecided, found.notes, found.differs = ([HOSTILE] for _ in range(4))
    found.versions = {HOSTILE: HOSTILE}
    for index, method in enumerate(found.methods):
        method.label, method.reason, method.runs = f"{HOSTILE}{index}", HOSTILE, [HOSTILE]
        method.params, method.servers = {HOSTILE: HOSTILE}, [HOSTILE]
    found.reference = found.methods[2].label
    return found


ODD: dict[str, Callable[[], Comparison]] = {
    "no method": bare,
    "one method that failed": lambda: bare(ComparedMethod("lora", "lora", status="failed", reason="no memory")),
    "one method with a score alone": lambda: bare(ComparedMethod("lora", "lora", score=1.2, scores=[1.2])),
    "one method with one point": lambda: bare(
        ComparedMethod("lora", "lora", score=1.2, trainable=10, curves=[Curve(0, [0], [1.2], [1.2])], rate=1e-3,
                       rates=[RatePoint(1e-3, 1.2)])
    ),
    "equal scores and costs": lambda: bare(
        *(ComparedMethod(f"m{n}", "lora", score=0.5, interval=(0.5, 0.5), trainable=5, seconds=0.0) for n in range(4))
    ),
    "nothing trained": lambda: bare(ComparedMethod("base", "base", score=1.5, trainable=0, seconds=0.0)),
    "numbers that are not finite": lambda: bare(
        ComparedMethod("a", "lora", score=math.nan, interval=(math.nan, math.inf), trainable=3),
        ComparedMethod("b", "lora", score=2.0, interval=(1.0, math.inf), peak_memory_bytes=5, forgotten=math.nan,
                       curves=[Curve(0, [0, 1, 2], [3.0, math.nan, 2.0], [math.inf, 2.5, 2.0])],
                       rates=[RatePoint(1e-3, math.nan, "diverged"), RatePoint(1e-2, 2.0)]),
    ),
    "scores that are negative or huge": lambda: bare(
        ComparedMethod("a", "lora", score=-3e12, interval=(-4e12, -2e12), trainable=10**12),
        ComparedMethod("b", "lora", score=7e11, interval=(6e11, 8e11), trainable=1),
        metric="eval_reward",
    ),
    "forty methods": lambda: many_methods(40),
    "hostile texts": hostile,
    "the example": example_comparison,
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_every_record_becomes_a_whole_page(name: str) -> None:
    record = ODD[name]()
    page, figures = comparison_report(record)
    found = checked(page)
    for method in record.methods:
        assert f'aria-label="{method.label}' not in page or "<" not in method.label
    body_rows = page.partition('id="methods"')[2].partition("<tbody>")[2].partition("</tbody>")[0].count("<tr>")
    assert body_rows == len(record.methods)
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        root = ElementTree.fromstring(figure.file())
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "nan" not in figure.file().lower()
        assert figure.name in found.ids


def test_texts_of_users_are_escaped() -> None:
    page, figures = comparison_report(hostile())
    assert "<script>alert" not in page and page.count("<script>") == 1
    assert "\u202e" not in page and "\x1b" not in page
    assert all("<script>" not in figure.file() for figure in figures)


def test_the_policy_allows_the_own_style_and_script_alone() -> None:
    page, _ = comparison_report(example_comparison())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_it_begins_with_what_to_choose_and_what_is_undecided() -> None:
    record = example_comparison()
    text = checked(comparison_report(record)[0]).text
    places = [text.index(part) for part in (record.summary[0], record.undecided[0], "All methods", "How to read this")]
    assert places == sorted(places)
    assert all(sentence in text for sentence in (*record.summary, *record.undecided, *record.notes))
    record.differs = ["seed differs: 0 in a; 1 in b"]
    of_runs = checked(comparison_report(record)[0]).text
    assert of_runs.index(record.differs[0]) < of_runs.index(record.summary[0])


def test_the_table_says_why_a_method_has_no_score() -> None:
    text = checked(comparison_report(example_comparison())[0]).text
    assert "diverged the loss was not finite at step 12 at every rate" in text
    assert "not better than the reference gains 0 points (-1 to 1), p = 0.9" in text
    assert "refused bitsandbytes has no 4-bit kernels" in text


def test_every_figure_has_its_numbers_and_is_a_file(tmp_path: Path) -> None:
    written = write_report(example_comparison(), tmp_path / "report.html")
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    assert names == {
        "report.html", "report.md",
        "plots/score-by-parameters.svg", "plots/score-by-time.svg", "plots/score-by-memory.svg",
        "plots/score-curves.svg", "plots/score-curves-by-method.svg", "plots/loss-curves.svg", "plots/rate-curves.svg",
    }  # fmt: skip
    page = written[0].read_text(encoding="utf-8")
    assert page.count("<figure ") == page.count("Numbers of this figure") == 7
    assert "22713986" in page and "1124000000" in page  # as recorded


def test_the_frontier_is_what_nothing_beats_at_its_cost() -> None:
    record = bare(
        *(ComparedMethod(name, "lora", score=score, trainable=cost) for name, score, cost in
          (("small", 0.5, 10), ("worse", 0.4, 100), ("large", 0.9, 1000), ("larger", 0.8, 5000))),
        metric="eval_accuracy",
    )  # fmt: skip
    assert "The stepped line is the frontier: small, large." in comparison_report(record)[0]
    lower = bare(*record.methods)
    assert "The stepped line is the frontier: small, worse." in comparison_report(lower)[0]


def test_the_page_is_made_from_the_file_alone(tmp_path: Path) -> None:
    record = ODD["numbers that are not finite"]()
    (tmp_path / "comparison.json").write_text(json.dumps(finite(record.as_dict()), allow_nan=False), encoding="utf-8")
    again = read_study(tmp_path / "comparison.json")
    assert isinstance(again, Comparison) and math.isnan(again.methods[1].curves[0].scores[1])
    assert checked(report_of(tmp_path)[0].read_text(encoding="utf-8")).ids
    record = example_comparison()
    (tmp_path / "comparison.json").write_text(json.dumps(record.as_dict()), encoding="utf-8")
    assert report_of(tmp_path)[0].read_text(encoding="utf-8") == comparison_report(record)[0]


def test_another_version_and_damage_are_refused(tmp_path: Path) -> None:
    data = example_comparison().as_dict()
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps({**data, "version": 9}), encoding="utf-8")
    with pytest.raises(UserError, match="is of version 9"):
        read_study(file)
    file.write_text(json.dumps({**data, "rows": "many"}), encoding="utf-8")
    with pytest.raises(UserError, match="rows"):
        read_study(file)
